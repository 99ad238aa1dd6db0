"""Responses with every token coloured by its entropy, on a page or in a terminal."""
