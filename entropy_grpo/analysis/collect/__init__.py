"""Entropies and log-probabilities of given responses, collected into files."""
