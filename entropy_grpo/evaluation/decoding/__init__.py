"""Samplers: a seed for each response, and forked decoding at two temperatures (arXiv 2506.01939, Eq. 5)."""
