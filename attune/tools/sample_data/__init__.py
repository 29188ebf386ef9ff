"""Generators of the embedded samples in data/sample."""
