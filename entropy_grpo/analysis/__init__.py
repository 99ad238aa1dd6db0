"""Analyses of the token entropy of any model, checkpoint or run (arXiv 2506.01939, arXiv 2508.02260)."""
