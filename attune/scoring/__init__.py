"""Metrics of replies."""
