"""Data sets and prompts: problems to train on and problems to hold out."""
