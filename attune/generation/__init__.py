"""Decoding and scoring replies with a language model."""
