"""Overlap, diversity, BERTScore, custom metrics."""
