"""Rewards by name, which decide whether a response is right."""
