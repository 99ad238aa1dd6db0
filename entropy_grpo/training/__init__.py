"""The trainer, and the jobs of GRPO training and of the cold start."""
