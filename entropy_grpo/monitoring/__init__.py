"""The logs of a run, and the watchers that read them."""
