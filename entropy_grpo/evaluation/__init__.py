"""Benchmarks answered by a model, graded and kept. It reads rows and files, and never imports the trainer."""
