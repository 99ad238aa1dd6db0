"""The LM head: log-probabilities whose backward pass computes the rows that have a gradient, and no others."""
