"""Attune, the library: one folder for each dependency of a stage (ARCHITECTURE.md)."""

import os

# TRL and huggingface_hub report usage by default. A pipeline on sensitive text reports nothing.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
