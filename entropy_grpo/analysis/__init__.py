"""Token entropy of any model, checkpoint or run: see the forks (arXiv 2506.01939, arXiv 2508.02260)."""
