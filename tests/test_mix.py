"""A mixture of corpora: its params, the dialogues taken from each part, and the files of the stage."""

import copy
import csv
import json
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random

import factory
import numpy as np
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from attune.config.params import check
from attune.corpora.splitting import mixture_key, mixture_thresholds
from attune.data.dialogue import Dialogue, Turn, read_dialogues
from attune.runtime.errors import DataError, ParamsError
from stages.download import needed
from stages.prepare import main

ROOT = Path(__file__).resolve().parents[1]


@cache
def _composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return OmegaConf.to_container(hydra_compose("config", list(overrides)), resolve=True)


def params(*overrides, **corpus):
    values = copy.deepcopy(_composed(*overrides))
    values["corpus"] |= corpus
    return check(values, "here")


def one(corpus, number, split="train"):
    return Dialogue(f"{corpus}/{split}/{number}", corpus, split, "x", (Turn("user", f"{corpus} {number}"),))


def many(**sizes):
    held_out = [one(name, i, split) for name in sizes for i in range(3) for split in ("valid", "test")]
    return [one(name, i) for name, size in sizes.items() for i in range(size)] + held_out


def weigh(dialogues, weights, seed):
    """What of a mixture's dialogues is taken, in their order."""
    places = {d: mixture_key(d.id, seed) for d in dialogues if d.split == "train"}
    of = {name: np.array([places[d] for d in places if d.corpus == name], np.uint64) for name in weights}
    last = mixture_thresholds(of, weights)
    return [d for d in dialogues if d.split != "train" or places[d] <= last[d.corpus]]


def train(dialogues):
    return Counter(d.corpus for d in dialogues if d.split == "train")


PROPORTIONS = [
    ({"a": 10, "b": 100}, {"a": 1, "b": 1}, {"a": 10, "b": 10}),
    ({"a": 10, "b": 100}, {"a": 1, "b": 5}, {"a": 10, "b": 50}),
    ({"a": 10, "b": 100}, {"a": 0.5, "b": 2.5}, {"a": 10, "b": 50}),
    ({"a": 10, "b": 30, "c": 7}, {"a": 0.1, "b": 0.3, "c": 0.07}, {"a": 10, "b": 30, "c": 7}),
    ({"a": 10, "b": 100}, {"a": 1, "b": 20}, {"a": 5, "b": 100}),
    ({"a": 3, "b": 100}, {"a": 1, "b": 50}, {"a": 2, "b": 100}),
]


@pytest.mark.parametrize(("sizes", "weights", "counts"), PROPORTIONS)
def test_the_largest_part_with_the_weights(sizes, weights, counts):
    dialogues = many(**sizes)
    taken = weigh(dialogues, weights, 13)
    assert train(taken) == counts and len(set(taken)) == len(taken)
    assert [d for d in taken if d.split != "train"] == [d for d in dialogues if d.split != "train"]


def test_the_choice_depends_on_seed_and_id_alone():
    dialogues = many(a=20, b=200)
    taken = set(weigh(dialogues, {"a": 1, "b": 2}, 13))
    for seed in range(3):
        shuffled = Random(seed).sample(dialogues, len(dialogues))
        assert set(weigh(shuffled, {"b": 2, "a": 1}, 13)) == taken
    assert set(weigh(dialogues, {"a": 1, "b": 2}, 14)) != taken
    more = set(weigh(dialogues, {"a": 1, "b": 3}, 13))
    assert taken < more, "a greater weight adds dialogues and takes none away"


def test_a_corpus_without_train_dialogues_is_named():
    with pytest.raises(DataError, match=r"corpus\.mix: b has no train dialogue to mix"):
        weigh(many(a=3, b=0), {"a": 1, "b": 1}, 13)


SAID = {
    "reader and mix": ({"reader": "esconv"}, "corpus.reader = 'esconv' with 2 corpora in corpus.mix"),
    "none of both": ({"mix": {}}, "corpus.reader = None with 0 corpora in corpus.mix"),
    "a file of the mixture": ({"file": "a.csv"}, "corpus.file and corpus.columns must be null in a mixture"),
    "weight": ({"mix": {"a": {"reader": "annomi", "weight": 0}}}, "corpus.mix.a.weight = 0: input should be greater"),
    "no weight": ({"mix": {"a": {"reader": "annomi"}}}, "key corpus.mix.a.weight is missing"),
    "unknown": ({"mix": {"a": {"reader": "annomi", "weight": 1, "share": 1}}}, "key corpus.mix.a.share is unknown"),
    "file": (
        {"mix": {"a": {"reader": "esconv", "weight": 1, "file": "b"}}},
        "corpus.mix.a.file = 'b': reader esconv reads files of fixed names",
    ),
    "one corpus's file": ({"reader": "esconv", "mix": {}, "file": "b"}, "corpus.file = 'b': reader esconv reads"),
    "columns": (
        {"reader": "annomi", "mix": {}, "columns": dict.fromkeys(("dialogue", "turn", "role", "text", "act"), "a")},
        "corpus.columns: reader annomi reads columns of fixed names",
    ),
    "a column": ({"reader": "mi", "mix": {}, "columns": {"dialogue": "id"}}, "key corpus.columns.turn is missing"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_params_refuse(case):
    values, message = SAID[case]
    with pytest.raises(ParamsError) as error:
        params("corpus=counselling", **values)
    assert f"here: {message}" in str(error.value)


def test_download_takes_every_corpus_of_a_mixture():
    assert needed(params("corpus=counselling")) == ("annomi", "mi_dataset")
    assert needed(params()) == ("empatheticdialogues",)
    with_ufjf = params("corpus=counselling", "+corpus.mix.ufjf={reader: ufjf, weight: 0.1}")
    assert needed(with_ufjf) == ("annomi", "mi_dataset", "ufjf")


def put_annomi(folder):
    folder.mkdir(parents=True)
    sample = ROOT / "data/sample/annomi_sample/AnnoMI-simple.csv"
    (folder / "AnnoMI-simple.csv").write_bytes(sample.read_bytes())


def put_mi(folder, count):
    """Posts with a name and a number in each, and one answer."""
    folder.mkdir(parents=True)
    with (folder / "mine.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "n", "who", "said", "code"])
        for i in range(count):
            writer.writerow([i, 1, "speaker", f"My name is Zoe, my story is {i}, my number 555-010-{1000 + i}.", ""])
            writer.writerow([i, 2, "listener", "Tell me more, Zoe.", "Open Question"])


COLUMNS = {"dialogue": "id", "turn": "n", "role": "who", "text": "said", "act": "code"}


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """Runs the stage on the sample of AnnoMI (42 train transcripts) with forum posts; gives dialogues and metrics."""
    monkeypatch.chdir(tmp_path)
    put_annomi(tmp_path / "data/raw/annomi")
    put_mi(tmp_path / "data/raw/posts", 200)
    (tmp_path / "data/given_names.csv").write_bytes((ROOT / "data/given_names.csv").read_bytes())

    def run(seed=13, mask=False):
        posts = {"reader": "mi", "weight": 3, "file": "mine.csv", "columns": COLUMNS}
        mix = {"annomi": {"reader": "annomi", "weight": 1}, "posts": posts}
        run = params("corpus=counselling", mix=mix, mask=mask)
        main(run.corpus, factory.pairs(rule="counselling"), seed)
        splits = {path.stem: read_dialogues(path) for path in Path("data/dialogues").iterdir()}
        return splits, json.loads(Path("metrics/data.json").read_text(encoding="utf-8"))

    return run


def test_the_stage_writes_a_mixture(mixed):
    splits, metrics = mixed()
    found = [d for some in splits.values() for d in some]
    assert len({d.id for d in found}) == len(found)
    assert all(d.id.startswith(f"{d.corpus}/{d.split}/") for d in found)
    assert Counter(d.corpus for d in splits["train"]) == {"annomi": 42, "posts": 126}
    assert Counter(d.corpus for d in splits["test"]) == {"annomi": 9, "posts": 30}
    assert {d.quality for d in splits["train"]} == {"high", "low", None}
    parts = {key: value for key, value in metrics.items() if key.startswith(("annomi_", "posts_"))}
    assert parts == {
        "annomi_train_dialogues": 42, "annomi_valid_dialogues": 9, "annomi_test_dialogues": 9,
        "posts_train_dialogues": 126, "posts_valid_dialogues": 30, "posts_test_dialogues": 30,
    }  # fmt: skip
    assert metrics["dropped_train_beyond_weight"] == 14 and metrics["train_dialogues"] == 168
    assert not any(key.startswith("masked_") for key in metrics)
    assert mixed()[0] == splits
    assert mixed(seed=14)[0]["train"] != splits["train"] and mixed(seed=14)[0]["test"] == splits["test"]


def test_the_stage_masks_where_params_say_so(mixed):
    plain, _ = mixed()
    splits, metrics = mixed(mask=True)
    assert {name: [d.id for d in some] for name, some in splits.items()} == {
        name: [d.id for d in some] for name, some in plain.items()
    }
    posts = [d for some in splits.values() for d in some if d.corpus == "posts"]
    assert all(d.turns[0].text.startswith("My name is [NAME], my story is ") for d in posts)
    assert {d.turns[1].text for d in posts} == {"Tell me more, [NAME]."}
    # Of all that were read, also those that the weights leave out.
    assert (metrics["masked_phone"], metrics["masked_name"]) == (200, 400)
    assert metrics["masked_email"] == metrics["masked_url"] == 0


def test_the_default_has_the_tracked_metrics(tmp_path, monkeypatch):
    """One corpus without masks: what the stage wrote before there were mixtures."""
    raw = tmp_path / "data/raw/empatheticdialogues"
    raw.mkdir(parents=True)
    for path in (ROOT / "data/sample/empatheticdialogues").glob("*.csv"):
        (raw / path.name).write_bytes(path.read_bytes())
    (tmp_path / "data/opposite_emotions.csv").write_bytes((ROOT / "data/opposite_emotions.csv").read_bytes())
    monkeypatch.chdir(tmp_path)
    main(params().corpus, params().pairs, 13)
    written = Path("metrics/data.json").read_text(encoding="utf-8")
    assert written == (ROOT / "metrics/data.json").read_text(encoding="utf-8")
    assert {d.corpus for d in read_dialogues(Path("data/dialogues/test.parquet"))} == {"empathetic_dialogues"}
