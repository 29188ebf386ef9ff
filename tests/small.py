"""A folder in which stage `sft` can run: params, a model of a few thousand weights and a few dialogues."""

import json
import os
from pathlib import Path

import factory
import pytest
from helpers import project

from attune.config.params import compose
from attune.data.dialogue import Dialogue, Turn, write_dialogues
from attune.models.tiny import make_model, train_tokenizer

WORDS = ("i", "feel", "so", "happy", "sad", "today", "my", "dog", "ran", "away", "and", "came", "home", "sorry")
OVERRIDES = [
    "model=tiny", "lora.r=4", "sft.epochs=1", "sft.batch_size=4", "sft.max_length=64",
    "compute.threads=1", "compute.dtype=fp32", "training.micro_batch_size=2", "runtime.save_every=500", "pairs.valid=0",
]  # fmt: skip


def text(number: int) -> str:
    return " ".join(WORDS[(number * 7 + place * (number % 5 + 1)) % len(WORDS)] for place in range(4 + number % 6))


def dialogue(number: int) -> Dialogue:
    turns = [Turn("assistant" if i % 2 else "user", text(4 * number + i)) for i in range(4)]
    return Dialogue(f"train/{number:04}", "sample", "train", "sad", tuple(turns))


def recorded_by_dvc(folder: Path) -> None:
    """As if DVC had recorded the stages that have ended in `folder`: they start from the beginning."""
    (folder / "dvc.lock").touch()
    for done in folder.glob(".checkpoints/*/.done"):
        os.utime(done, (1, 1))


def make(folder: Path, dialogues: int, overrides: list[str] = OVERRIDES) -> Path:
    """Params, `models/base` and the train split below `folder`; 4 dialogues are a step."""
    project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        compose(overrides)
    tiny = factory.tiny()
    some = [dialogue(number) for number in range(dialogues)]
    tokenizer = train_tokenizer((turn.text for one in some[:32] for turn in one.turns), 400, 128)
    make_model(tokenizer, tiny, seed=1).save_pretrained(folder / "models/base")
    tokenizer.save_pretrained(folder / "models/base")
    record = {"name": "micro", "source": "made"}
    (folder / "models/base/base.json").write_text(json.dumps(record))
    write_dialogues(some, folder / "data/dialogues/train.parquet")
    return folder
