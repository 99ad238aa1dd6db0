"""Planning: cost of a recipe on given machines, computed without a GPU."""
