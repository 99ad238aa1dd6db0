"""The method in pure torch: selection of tokens, advantages, and batches of an optimiser step."""
