"""Models: loading, adapters, and the LM head that differentiates only the rows that have a gradient."""
