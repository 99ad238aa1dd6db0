"""Models: load them, adapt them, and the LM head that computes only the rows that have a gradient."""
