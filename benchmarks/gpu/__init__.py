"""Measurements for one GPU, in parts that need nothing of each other; see `__main__`."""
