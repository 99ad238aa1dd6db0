"""The trainer, and the jobs that it and the cold start run."""
