"""The cost of a recipe on given machines, before a GPU is touched."""
