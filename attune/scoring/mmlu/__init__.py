"""MMLU through lm-evaluation-harness, with the prefix of prompts computed once."""
