"""The page `docs/bring-your-own.md`: each example of dialogues goes through the stages that read it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from faults.pipeline import command, make
from helpers import ROOT, project
from micro import MICRO

from attune.config.params import compose, load
from attune.data.dialogue import SPLITS, read_dialogues
from stages import download, prepare

CHATS = ROOT / "examples/chats"
PAGE = (ROOT / "docs/bring-your-own.md").read_text(encoding="utf-8")


def with_project(folder: Path, monkeypatch) -> None:
    project(folder)
    shutil.copytree(CHATS, folder / "examples/chats")
    (folder / "data").mkdir()
    for name in ("sources.yaml", "licences.yaml", "opposite_emotions.csv"):
        shutil.copy(ROOT / "data" / name, folder / "data")
    monkeypatch.chdir(folder)


def prepared(*overrides: str) -> list:
    compose(["corpus.local_dir=examples/chats", *overrides])
    params = load()
    download.main()
    prepare.main(params.corpus, params.pairs, params.seed)
    return [one for split in SPLITS for one in read_dialogues(Path(f"data/dialogues/{split}.parquet"))]


def test_each_example_of_the_page_gives_the_same_dialogues(tmp_path, monkeypatch):
    with_project(tmp_path, monkeypatch)
    examples = {path.name for path in CHATS.iterdir()}
    assert set(re.findall(r"\(\.\./examples/chats/(\w+)\)", PAGE)) == examples
    found = {
        name: prepared("corpus=messages", f"corpus.name={name}") for name in sorted(examples - {"quoted", "sharegpt"})
    }
    found["quoted"] = prepared("corpus.name=quoted")
    expected = [(one.id, one.label, one.turns) for one in found["messages"]]
    assert len(expected) == 34 and len({split for split, _, _ in (id.partition("/") for id, *_ in expected)}) == 3
    for name, dialogues in found.items():
        assert [(one.id, one.label, one.turns) for one in dialogues] == expected, name
    # Without labels, and with a system turn.
    chats = prepared("corpus=messages", "corpus.name=sharegpt", "pairs.rule=counselling")
    assert {one.turns[0].role for one in chats} == {"system"}
    assert {one.turns[1:] for one in chats} == {turns for *_, turns in expected}
    manifest = json.loads(Path("data/manifest.json").read_text(encoding="utf-8"))
    assert {(one["corpus"], one["licence"], one["origin"]) for one in manifest} == {("sharegpt", "CC0 1.0", "local")}


@pytest.mark.slow
def test_chats_of_ones_own_train_a_model_and_a_changed_row_is_seen(tmp_path):
    small = [one for one in MICRO if not one.startswith(("~rounds.e3", "variants.sft-dpo.model"))]
    rounds = ["~rounds.e2", "~rounds.e3", "variants.sft-dpo.model=models/dpo/e1"]
    folder = make(tmp_path, ["corpus=messages", *small, *rounds, "sft.batch_size=8", "pairs.limit=16"])
    shutil.copytree(CHATS / "messages", folder / "my_data/messages")
    said = command(folder, "dvc", "repro", "dpo@e1")
    assert "train 21, valid 6, test 7 dialogues; dropped: none" in said
    assert json.loads((folder / "metrics/pairs/e1.json").read_text(encoding="utf-8"))["pairs"] == 16
    assert (folder / "models/dpo/e1/adapter_model.safetensors").is_file()
    chats = folder / "my_data/messages/chats.jsonl"
    before = (folder / "data/dialogues/train.parquet").read_bytes()
    lines = chats.read_text(encoding="utf-8").splitlines(keepends=True)
    chats.write_text("".join([lines[0].replace("my rabbit died", "my rabbit ran away"), *lines[1:]]), encoding="utf-8")
    ran = re.findall(r"Running stage '([^']+)'", command(folder, "dvc", "repro", "prepare"))
    assert ran == ["download", "prepare"]
    assert before != (folder / "data/dialogues/train.parquet").read_bytes()
