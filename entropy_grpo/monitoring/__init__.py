"""Logs of a run, and watchers that read them."""
