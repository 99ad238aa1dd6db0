"""What another token at a fork changes (arXiv 2508.02260, Eq. 5 and 6)."""
