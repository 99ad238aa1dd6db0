"""Programs as answers: their cases, and the sandbox in which they run."""
