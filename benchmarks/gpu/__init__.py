"""Measurements on one GPU, in independent parts; see `__main__`."""
