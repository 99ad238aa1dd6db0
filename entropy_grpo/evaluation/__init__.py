"""Evaluation: benchmarks answered by a model, graded and stored. The package never imports the trainer."""
