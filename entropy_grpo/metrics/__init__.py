"""Figures about answers, as numbers and as text."""
