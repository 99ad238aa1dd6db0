"""Recipes and the settings that they may hold."""
