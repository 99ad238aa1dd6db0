"""Model cards from the files of a run."""
