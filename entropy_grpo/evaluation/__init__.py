"""Measuring answers. Reads rows and files; never imports the trainer."""
