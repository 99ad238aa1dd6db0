"""The method in pure torch: which tokens count, what they weigh, in which batches."""
