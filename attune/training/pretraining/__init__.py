"""Pretraining of a small base model from random weights, or of an encoder that becomes a decoder."""
