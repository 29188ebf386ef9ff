"""Stage `sft`: supervised fine-tuning of a LoRA adapter on whole dialogues, loss on assistant tokens (EmPO §3).

    python -m stages.sft
    python -m stages.sft high

writes `models/sft`. With a quality (stage `sft_quality@high`) it trains on the dialogues of that quality only, and
writes the folder that `sft.by_quality` names.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from attune.compute.memory import retry_on_oom
from attune.config.params import folder_of, load
from attune.config.schema import Hardware, Params
from attune.data.dialogue import read_dialogues
from attune.runtime.checkpoints import checkpoints
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.launch import run as in_ranks

BASE = Path("models/base")
TRAIN = Path("data/dialogues/train.parquet")
TARGET = Path("models/sft")
CURVES = Path("reports/curves")


def main(params: Params, quality: str | None = None) -> None:
    """Write the adapter to `models/sft`, or the adapter of a quality to its folder."""
    from attune.models.loading import load_base, load_tokenizer
    from attune.training.common.resume import last_checkpoint
    from attune.training.common.trainer import export_adapter
    from attune.training.sft.fine_tune import dialogues_of_quality, fine_tune

    dialogues, name, target = read_dialogues(TRAIN), "sft", TARGET
    if quality is not None:
        folders = {str(key): folder for key, folder in params.sft.by_quality.items()}
        target = folder_of(folders, quality, "sft.by_quality")
        dialogues, name = dialogues_of_quality(dialogues, quality, TRAIN), f"sft-{quality}"
    settings = (params.sft, params.lora, params.hardware, params.seed)
    with checkpoints(name, settings, [Path("stages"), BASE, TRAIN]) as folder:
        tokenizer = load_tokenizer(BASE)

        def attempt(hardware: Hardware) -> Any:
            settings = (params.sft, params.lora, hardware, params.seed)
            return fine_tune(load_base(BASE, hardware), tokenizer, dialogues, *settings, folder, CURVES / name)

        retry_on_oom(attempt, params.hardware, params.sft)

        def write() -> None:
            end = last_checkpoint(folder)
            assert end is not None, "the trainer writes a checkpoint at its last step"
            export_adapter(end, target)

        on_main_process(write)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quality", nargs="?", help="a key of sft.by_quality")
    quality = parser.parse_args().quality
    with reported():
        params = load()
        in_ranks(lambda: main(params, quality), params.hardware)
