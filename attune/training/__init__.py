"""Pretraining of small base models, SFT and DPO."""
