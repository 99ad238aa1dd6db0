"""Decoding with one temperature at forks and another elsewhere: its accuracy (arXiv 2506.01939, Eq. 5 and Fig. 3)."""
