"""Divergence at forks: the effect of forcing another token (arXiv 2508.02260, Eq. 5 and 6)."""
