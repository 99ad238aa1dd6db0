"""Responses with tokens coloured by entropy, on a page or in a terminal."""
