"""See the forks: token entropy in any model, checkpoint or run (arXiv 2506.01939, arXiv 2508.02260)."""
