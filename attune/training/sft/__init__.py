"""Supervised fine-tuning of a LoRA adapter."""
