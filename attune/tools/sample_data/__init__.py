"""Generators of the committed sample data."""
