"""Pairs made elsewhere through stages pairs and dpo by DVC, and exported pairs in TRL."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import small
from dvc.repo import Repo
from helpers import ROOT

from attune.config.params import compose, load
from attune.tools.export import main as export
from stages import dpo as dpo_stage
from stages import pairs as pairs_stage

pytestmark = pytest.mark.slow

OVERRIDES = [
    *small.OVERRIDES, "pairs.rule=file", "pairs.table=mine/pairs.jsonl", "pairs.file.held_out=0.5", "dpo.batch_size=2",
    "dpo.max_length=96", "~rounds.e3", "rounds.e1.init=models/base", "variants.sft-dpo.model=models/dpo/e2",
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A project with a base model, and the example of a file as one's own pairs."""
    small.make(tmp_path, 4, OVERRIDES)
    for package in ("attune", "stages"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mine").mkdir()
    shutil.copy(ROOT / "examples/pairs/messages.jsonl", tmp_path / "mine/pairs.jsonl")
    shutil.copy(ROOT / "data/opposite_emotions.csv", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "PYTHONPATH", str(tmp_path))
    return tmp_path


def reproduced(*targets: str) -> set[str]:
    """What ran, of stages whose dependencies other stages would write."""
    with Repo() as repo:
        return {stage.addressing for target in targets for stage in repo.reproduce(target, single_item=True)}


def rows(key: str):
    return pq.read_table(f"data/pairs/{key}.parquet").to_pylist()


def test_a_file_of_pairs_trains_a_model_and_a_changed_row_trains_it_again(run):
    stages = ["pairs@e1", "dpo@e1"]
    assert reproduced(*stages) == set(stages)
    metrics = json.loads(Path("metrics/pairs/e1.json").read_text(encoding="utf-8"))
    assert metrics["pairs"] == len(rows("e1")) == 6 - metrics["left_out_held_out"] and 2 <= metrics["pairs"] < 6
    before = Path("models/dpo/e1/adapter_model.safetensors").read_bytes()
    assert reproduced(*stages) == set()
    path = Path("mine/pairs.jsonl")
    changed = path.read_text(encoding="utf-8").replace("It was only a cat", "It was just a cat")
    path.write_text(changed.replace("It won't last", "It will not last"), encoding="utf-8")
    assert reproduced(*stages) == set(stages)
    assert Path("models/dpo/e1/adapter_model.safetensors").read_bytes() != before

    from datasets import load_dataset
    from trl.data_utils import apply_chat_template, is_conversational, maybe_extract_prompt

    from attune.models.loading import load_tokenizer

    export(["pairs", "e1", "-o", "e1.jsonl"])
    tokenizer = load_tokenizer(Path("models/base"))
    for row, pair in zip(load_dataset("json", data_files="e1.jsonl", split="train"), rows("e1"), strict=True):
        assert is_conversational(row) and maybe_extract_prompt(row) == row
        texts = apply_chat_template({side: row[side] for side in ("prompt", "chosen", "rejected")}, tokenizer)
        assert pair["chosen"] in texts["chosen"] and pair["rejected"] in texts["rejected"]
        assert all(turn["text"] in texts["prompt"] for turn in pair["prompt"])


def test_policy_pairs_are_samples_of_the_round_that_they_train(run):
    model = "models/base"
    compose([*small.OVERRIDES, "pairs.rule=policy", f"rounds.e1.candidates={model}", f"rounds.e1.init={model}",
             "rounds.e2.candidates=models/dpo/e1", "~rounds.e3", "variants.sft-dpo.model=models/dpo/e2",
             "pairs.max_new_tokens=8", "dpo.max_length=96", "dpo.batch_size=2"])  # fmt: skip
    params = load()
    pairs_stage.main("e1", params)
    dpo_stage.main("e1", params)
    pairs_stage.main("e2", params)
    first, second = rows("e1"), rows("e2")
    human = {row["id"]: row["chosen"] for row in first}
    assert first and second and all(row["rejected"] and row["rejected"] != human[row["id"]] for row in first)
    assert {row["epoch"] for row in second} == {2} and not first[0]["future_rejected"]
    assert [row["rejected"] for row in first] != [row["rejected"] for row in second]
