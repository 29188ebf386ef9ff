"""Replies of a language model: prompts, decoding, sampling, vLLM, and log-probabilities of given replies."""
