"""How tokens are drawn: with a seed for each response, or at two temperatures (arXiv 2506.01939, Eq. 5)."""
