"""The stages of the pipeline, one file each; `dvc.yaml` wires them."""

import os

# TRL and huggingface_hub report usage unless told otherwise; a pipeline on sensitive text reports nothing.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
