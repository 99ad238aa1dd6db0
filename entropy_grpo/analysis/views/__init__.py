"""Statistics of collected tokens, one view per module."""
