"""Stage `sft@<adapter>`: supervised fine-tuning of a LoRA adapter, with the loss on assistant tokens (EmPO §3).

    python -m stages.sft sft

writes `models/sft`. `adapters` in the params lists the adapters and their training dialogues: all, or those that the
corpus rates high or low.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attune.compute.memory import retry_on_oom
from attune.config.params import load, named
from attune.config.schema import Hardware, Params
from attune.data.dialogue import read_dialogues
from attune.runtime.checkpoints import checkpoints
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.launch import run as in_ranks

BASE = Path("models/base")
TRAIN = Path("data/dialogues/train.parquet")
MODELS = Path("models")
CURVES = Path("reports/curves")


def main(name: str, params: Params) -> None:
    """Write the adapter `name` to `models/<name>`."""
    from attune.models.check import check_encoders
    from attune.models.loading import load_base, load_tokenizer
    from attune.models.system_prompt import tell_joined
    from attune.training.common.resume import last_checkpoint
    from attune.training.common.trainer import export_adapter
    from attune.training.sft.fine_tune import dialogues_of_quality, fine_tune, instructed

    on_main_process(lambda: check_encoders(params))
    quality, dialogues = named(params.adapters, name, "adapters").quality, read_dialogues(TRAIN)
    if quality != "all":
        dialogues = dialogues_of_quality(dialogues, quality, TRAIN)
    dialogues = instructed(dialogues, params.sft)
    with checkpoints(f"sft@{name}", params) as folder:
        tokenizer = load_tokenizer(BASE)
        on_main_process(lambda: tell_joined(tokenizer, dialogues))

        def attempt(hardware: Hardware) -> Any:
            settings = (params.sft, params.lora, hardware, params.seed)
            return fine_tune(load_base(BASE, hardware), tokenizer, dialogues, *settings, folder, CURVES / name)

        retry_on_oom(attempt, params.hardware, params.sft)

        def write() -> None:
            end = last_checkpoint(folder)
            assert end is not None, "the trainer writes a checkpoint at its last step"
            export_adapter(end, MODELS / name)

        on_main_process(write)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, adapter="a key of adapters")
        params = load()
        in_ranks(lambda: main(arguments.adapter, params), params.hardware)
