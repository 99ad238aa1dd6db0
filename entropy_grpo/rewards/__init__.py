"""Rewards by name, and what makes a response right."""
