"""The stages of DBT: the table, the classifier, its training data by params, and the metrics."""

import shutil
from dataclasses import replace
from pathlib import Path

import factory
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import prepare, score_variants, small_mpnet

from attune.classifiers import dbt
from attune.classifiers.common.quality import calibration_error
from attune.classifiers.common.sources import trained_on
from attune.classifiers.common.turn_classifier import TurnClassifier, encode, logits, make_model, probabilities, save
from attune.classifiers.common.turn_training import quality
from attune.classifiers.dbt.classifier import LABELS, STAGES, read_stages
from attune.classifiers.dbt.classifier import probabilities as stage_probabilities
from attune.classifiers.dbt.learn import read_turns
from attune.classifiers.dbt.scores import metrics, per_example
from attune.data.dialogue import SPLITS, Dialogue, Turn, write_dialogues
from attune.data.examples import examples
from attune.labels.turn_labels import label_turns
from attune.models.encoder import load_encoder
from attune.runtime.errors import DataError, ModelError
from attune.scoring.intervals.bootstrap import columns as numeric
from attune.scoring.intervals.bootstrap import intervals

ROOT = Path(__file__).resolve().parents[1]
BASE = factory.params()
CPU = BASE.hardware
SAMPLE = ROOT / "data/sample/esconv_sample"


@pytest.fixture(scope="module")
def untrained():
    """A classifier with a random head on the default encoder."""
    torch.manual_seed(0)
    encoder, tokenizer = load_encoder(BASE.encoder, CPU)
    return TurnClassifier(make_model(encoder, len(LABELS)).eval(), tokenizer, LABELS, 48, 3)


def talk(*texts):
    return tuple(Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))


CONTEXTS = [talk("I lost my job."), talk("Hi.", "Hello.", "My dog died " * 40), talk("", "", "Why?")]
REPLIES = ["When did that happen?", "I am so sorry. " * 40, ""]


def test_batches_equal_single_inputs(untrained):
    inputs = encode(untrained, CONTEXTS, REPLIES)
    together = probabilities(untrained, inputs * 2, CPU)
    alone = [probabilities(untrained, [one], CPU)[0] for one in inputs]
    np.testing.assert_allclose(together, alone * 2, atol=1e-5)
    np.testing.assert_allclose(np.sum(together, axis=1), 1)
    assert np.ptp(together, axis=0).max() > 1e-4


def test_truncation_keeps_the_reply_and_the_end_of_the_context(untrained):
    inputs = encode(untrained, CONTEXTS, REPLIES)
    tokens = [untrained.tokenizer.decode(list(one.ids)) for one in inputs]
    assert tokens[0] == "[CLS] i lost my job. [SEP] when did that happen? [SEP]"
    assert untrained.tokenizer.decode(list(inputs[0].ids[inputs[0].reply :])) == "when did that happen? [SEP]"
    assert [len(one.ids) for one in inputs[:2]] == [13, 48]
    # A quarter of the room is the context's where both are too long, and of it the end.
    assert inputs[1].reply == 2 + 45 // 4 and tokens[1].split(" [SEP]")[0].endswith("my dog died")
    assert inputs[2].ids[-1] == untrained.tokenizer.sep_token_id


def test_save_and_load(untrained, tmp_path):
    folder = tmp_path / "dbt"
    with pytest.raises(ModelError, match=r"classifier\.json is missing: run `dvc repro classifier@dbt`$"):
        stage_probabilities(folder, CONTEXTS, REPLIES, CPU)
    save(untrained, {"classifier": "none"}, folder)
    expected = probabilities(untrained, encode(untrained, CONTEXTS, REPLIES), CPU)
    assert stage_probabilities(folder, CONTEXTS, REPLIES, CPU) == expected
    with pytest.raises(ValueError, match="zip"):
        stage_probabilities(folder, CONTEXTS, REPLIES[:2], CPU)
    save(replace(untrained, labels=tuple("abcde")), {}, folder)
    with pytest.raises(ModelError, match="classifies a, b, c, d, e, not listening"):
        stage_probabilities(folder, CONTEXTS, REPLIES, CPU)


def test_mpnet_as_the_encoder(tmp_path):
    encoder, tokenizer = small_mpnet()
    classifier = TurnClassifier(make_model(encoder, len(LABELS)).eval(), tokenizer, LABELS, 48, 3)
    inputs = encode(classifier, CONTEXTS, REPLIES)
    together = probabilities(classifier, inputs, CPU)
    np.testing.assert_allclose(together, [probabilities(classifier, [one], CPU)[0] for one in inputs], atol=1e-5)
    save(classifier, {}, tmp_path / "dbt")
    assert stage_probabilities(tmp_path / "dbt", CONTEXTS, REPLIES, CPU) == together
    logits(classifier.model, inputs).sum().backward()
    assert encoder.encoder.relative_attention_bias.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("strategy,stage\n", "has no rows"),
        ("strategy,stage\nQuestion,asking\n", r":2: stage 'asking' is none of listening, .*, none, and not empty"),
        ("strategy,stage\nQuestion,listening\nQuestion,\n", ":3: strategy 'Question' has two rows"),
        ("name,stage\nQuestion,listening\n", ":1: no column strategy; found name, stage"),
    ],
)
def test_invalid_tables(tmp_path, rows, message):
    (tmp_path / "table.csv").write_text(rows, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_stages(tmp_path / "table.csv")


def test_table_of_esconv():
    table = read_stages(ROOT / "data/dbt_stages.csv")
    assert set(table.values()) == set(LABELS)
    assert (table["Question"], table["Self-disclosure"], table["Information"]) == ("listening", "genuine", "none")


def test_unknown_acts():
    one = Dialogue("train/1", "x", "train", "sad", (Turn("user", "a"), Turn("assistant", "b", "Hug")))
    with pytest.raises(DataError, match=r"no row for 1 acts of the corpus: 'Hug' \(1\): add a row for each"):
        label_turns([one], {"Question": "listening"}, LABELS, 1, "dbt.table")
    with pytest.raises(DataError, match="fewer than two labels"):
        label_turns([one], {"Hug": "genuine"}, LABELS, 1, "dbt.table")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a classifier trained on the embedded sample, its metrics, and the scores of two variants."""
    folder = tmp_path_factory.mktemp("dbt")
    dialogues, _ = prepare(SAMPLE, "esconv")
    short = {"epochs": 1, "batch_size": 16, "max_length": 32, "learning_rate": 4e-4}
    settings = replace(BASE.dbt, **short, table=str(ROOT / "data/dbt_stages.csv"))
    params = factory.params(dbt=settings, corpus=factory.corpus(name="esconv_sample", reader="esconv"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for split in SPLITS:
            # 48 of the 120 train dialogues are enough to learn from.
            some = [one for one in dialogues if one.split == split][:48]
            write_dialogues(some, Path(f"data/dialogues/{split}.parquet"))
        quality = dbt.train(params, folder / "checkpoints", folder / "models/dbt")
    test = examples([d for d in dialogues if d.split == "test"], "every", 3)
    variants = {"people": lambda example: example.target, "advice": lambda _: "Try to sleep."}
    columns = score_variants(dbt, folder / "models/dbt", test, variants, CPU)
    return folder / "models/dbt", quality, columns


@pytest.mark.slow
def test_learns_the_sample(trained):
    folder, found, _ = trained
    assert found["accuracy"] > found["majority_accuracy"] + 20
    assert found["macro_f1"] > found["majority_macro_f1"] + 30
    assert {f"f1_{label}" for label in LABELS} < found.keys() and 0 <= found["calibration_error"] <= 100
    named = dbt.signature(folder)
    assert (named["dbt_classifier"], named["dbt_context_turns"]) == ("trained on esconv_sample", "1")
    assert named["dbt_encoder_sha256"] == BASE.encoder.sha256


@pytest.mark.slow
def test_human_replies_have_no_gap_and_advice_has_one(trained):
    _, _, columns = trained
    people, advice = (dbt.metrics(columns[variant]) for variant in ("people", "advice"))
    assert people["dbt_gap"] == people["dbt_diff"] == 0  # the same inputs in another order
    assert advice["dbt_gap"] > 2 and advice["dbt_diff"] > 2
    assert advice["dbt_adherence"] < people["dbt_adherence"]
    for stage in STAGES:
        assert people[f"dbt_{stage}"] == people[f"dbt_reference_{stage}"] == advice[f"dbt_reference_{stage}"]
    scores, reference = (numeric(pd.DataFrame(columns[variant])) for variant in ("people", "advice"))
    bounds = intervals(reference, None, 100, 13)
    assert bounds["dbt_gap.low"] <= advice["dbt_gap"] <= bounds["dbt_gap.high"]
    assert not [name for name in bounds if name.startswith("dbt_reference")]
    other = intervals(scores, reference, 100, 13)
    assert other["dbt_gap.diff"] == pytest.approx(-advice["dbt_gap"]) and other["dbt_gap.diff_high"] < 0


def test_another_corpus_with_other_acts(tmp_path):
    shutil.copytree(SAMPLE, tmp_path / "mine")
    for path in (tmp_path / "mine").glob("*.txt"):
        lines = path.read_text(encoding="utf-8").replace('"strategy": "', '"strategy": "my ').splitlines()
        path.write_text("\n".join(lines[:8]), encoding="utf-8")
    stages = read_stages(ROOT / "data/dbt_stages.csv")
    rows = [f"my {act},{stage},me" for act, stage in stages.items()]
    (tmp_path / "mine.csv").write_text("\n".join(["strategy,stage,source", *rows]), encoding="utf-8")
    settings = replace(BASE.dbt, data=str(tmp_path / "mine"), table=str(tmp_path / "mine.csv"))
    labelled, without_act = read_turns(settings)
    assert len(labelled["train"]) > 30 and without_act == 0
    assert {len(turn.context) for turns in labelled.values() for turn in turns} == {settings.context_turns}


@pytest.mark.parametrize(
    ("folder", "name"),
    [("data/dialogues", "esconv"), ("data/sample/esconv_sample", "sample"), ("data/raw/mine", "mine")],
)
def test_training_data_has_a_name(folder, name):
    assert trained_on(Path(folder), "esconv") == f"trained on {name}"


def test_metrics_by_hand():
    own = [[0.5, 0.1, 0.1, 0.1, 0.2], [0.1, 0.1, 0.1, 0.1, 0.6]]
    human = [[0.1, 0.1, 0.1, 0.1, 0.6], [0.1, 0.3, 0.1, 0.1, 0.4]]
    columns = per_example(own, human)
    assert columns["dbt_diff"] == pytest.approx([100 * 0.16 / 4, 100 * 0.04 / 4])
    assert columns["dbt_adherence"] == pytest.approx([80, 40])
    found = metrics(columns)
    # Means of listening 30 and 10, of reflecting 10 and 20, the others alike: (20 + 10) / 4.
    assert found["dbt_gap"] == pytest.approx(7.5)
    assert (found["dbt_diff"], found["dbt_adherence"]) == pytest.approx((2.5, 60))
    bounds = intervals({name: np.array(column) for name, column in columns.items()}, None, 500, 13)
    # A resample holds either example twice or both: gaps of 10, 5 and 7.5.
    assert (bounds["dbt_gap.low"], bounds["dbt_gap.high"]) == pytest.approx((5, 10))
    with pytest.raises(ValueError, match="no examples"):
        metrics(per_example([], []))


def test_quality_by_hand():
    rows = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]]
    found = quality(("a", "b"), [0, 1, 1, 0], rows)
    assert (found["accuracy"], found["majority_accuracy"]) == (75, 50)
    assert (found["f1_a"], round(found["f1_b"], 2)) == (80, 66.67)
    # Alone in their bins: 0.1 too shy, 0.6 too bold, 0.2 and 0.3 too shy.
    assert found["calibration_error"] == pytest.approx(100 * (0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert calibration_error([], []) == 0


def test_dialogues_without_acts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in SPLITS:
        turns = (Turn("user", "a"), Turn("assistant", "b"))
        write_dialogues([Dialogue("1", "x", split, "sad", turns)], Path(f"data/dialogues/{split}.parquet"))
    with pytest.raises(DataError, match="fewer than two labels"):
        read_turns(replace(BASE.dbt, table=str(ROOT / "data/dbt_stages.csv")))
