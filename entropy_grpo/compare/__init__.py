"""Several runs side by side, and sweeps that make them."""
