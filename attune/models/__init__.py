"""Loading models and encoders, chat templates, the tiny models."""
