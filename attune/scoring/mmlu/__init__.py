"""MMLU by lm-evaluation-harness on local rows."""
