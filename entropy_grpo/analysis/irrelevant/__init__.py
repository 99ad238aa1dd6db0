"""Irrelevant content of responses, judged by a language model (arXiv 2508.02260)."""
