"""Readers of corpora, one for each file format."""
