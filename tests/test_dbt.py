"""The stages of DBT: the table, the classifier, what it is trained on by config, and the metrics made of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import prepare

from attune.classifiers.common.quality import calibration_error
from attune.classifiers.common.turn_classifier import TurnClassifier, encode, make_model, probabilities, save
from attune.classifiers.common.turn_training import quality
from attune.classifiers.dbt.classifier import LABELS, STAGES, read_stages
from attune.classifiers.dbt.classifier import probabilities as stage_probabilities
from attune.classifiers.dbt.scores import metrics, per_example
from attune.config.params import load
from attune.data.dialogue import SPLITS, Dialogue, Turn, examples, write_dialogues
from attune.generation.answer import write_replies
from attune.labels.turn_labels import label_turns
from attune.models.encoder import load_encoder
from attune.runtime.errors import DataError, ModelError
from attune.scoring.intervals.bootstrap import intervals as bootstrap
from stages import dbt, intervals, label_references, label_scores

ROOT = Path(__file__).resolve().parents[1]
BASE = load(ROOT / "params.yaml")
CPU = replace(BASE.hardware, threads=1, dtype="fp32")
SAMPLE = ROOT / "data/sample/esconv_sample"


def params(**more):
    chosen = {"classifiers": {"dbt": "models/dbt"}, "variants": {"base": "models/dbt", "sft": "models/dbt"}, **more}
    corpus = replace(BASE.corpus, name="esconv_sample", reader="esconv", targets="every", max_context_turns=3)
    settings = replace(BASE.evaluate, resamples=100)
    return replace(BASE, hardware=CPU, corpus=corpus, evaluate=settings, dbt=replace(BASE.dbt, **chosen))


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


def test_a_batch_gives_what_single_inputs_give(untrained):
    inputs = encode(untrained, CONTEXTS, REPLIES)
    together = probabilities(untrained, inputs * 2, CPU)
    alone = [probabilities(untrained, [one], CPU)[0] for one in inputs]
    np.testing.assert_allclose(together, alone * 2, atol=1e-5)
    np.testing.assert_allclose(np.sum(together, axis=1), 1)
    assert np.ptp(together, axis=0).max() > 1e-4


def test_an_input_keeps_the_reply_and_the_end_of_the_context(untrained):
    inputs = encode(untrained, CONTEXTS, REPLIES)
    tokens = [untrained.tokenizer.decode(list(one.ids)) for one in inputs]
    assert tokens[0] == "[CLS] i lost my job. [SEP] when did that happen? [SEP]"
    assert untrained.tokenizer.decode(list(inputs[0].ids[inputs[0].reply :])) == "when did that happen? [SEP]"
    assert [len(one.ids) for one in inputs[:2]] == [13, 48]
    # A quarter of the room is the context's where both are too long, and of it the end.
    assert inputs[1].reply == 2 + 45 // 4 and tokens[1].split(" [SEP]")[0].endswith("my dog died")
    assert inputs[2].ids[-1] == untrained.tokenizer.sep_token_id


def test_the_folder_gives_back_the_classifier(untrained, tmp_path):
    folder = tmp_path / "dbt"
    with pytest.raises(ModelError, match=r"classifier\.json is missing: run `dvc repro dbt@dbt`$"):
        stage_probabilities(folder, CONTEXTS, REPLIES, CPU)
    save(untrained, {"classifier": "none"}, folder)
    expected = probabilities(untrained, encode(untrained, CONTEXTS, REPLIES), CPU)
    assert stage_probabilities(folder, CONTEXTS, REPLIES, CPU) == expected
    with pytest.raises(ValueError, match="zip"):
        stage_probabilities(folder, CONTEXTS, REPLIES[:2], CPU)
    save(replace(untrained, labels=tuple("abcde")), {}, folder)
    with pytest.raises(ModelError, match="classifies a, b, c, d, e, not listening"):
        stage_probabilities(folder, CONTEXTS, REPLIES, CPU)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("strategy,stage\n", "has no rows"),
        ("strategy,stage\nQuestion,asking\n", r":2: stage 'asking' is none of listening, .*, none, and not empty"),
        ("strategy,stage\nQuestion,listening\nQuestion,\n", ":3: strategy 'Question' has two rows"),
        ("name,stage\nQuestion,listening\n", ":1: no column strategy; found name, stage"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path, rows, message):
    (tmp_path / "table.csv").write_text(rows, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_stages(tmp_path / "table.csv")


def test_the_table_of_esconv():
    table = read_stages(ROOT / "data/dbt_stages.csv")
    assert set(table.values()) == set(LABELS)
    assert (table["Question"], table["Self-disclosure"], table["Information"]) == ("listening", "genuine", "none")


def test_an_act_that_the_table_lacks_is_named():
    one = Dialogue("train/1", "x", "train", "sad", (Turn("user", "a"), Turn("assistant", "b", "Hug")))
    with pytest.raises(DataError, match=r"no row for 1 acts of the corpus: 'Hug' \(1\): add a row for each"):
        label_turns([one], {"Question": "listening"}, LABELS, 1, "dbt.table")
    with pytest.raises(DataError, match="fewer than two labels"):
        label_turns([one], {"Hug": "genuine"}, LABELS, 1, "dbt.table")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which the classifier learnt from the embedded sample and scored two variants."""
    folder = tmp_path_factory.mktemp("dbt")
    dialogues, _ = prepare(SAMPLE, "esconv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("stages", "data/dbt_stages.csv"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).symlink_to(ROOT / name)
        for split in SPLITS:
            some = sorted((one for one in dialogues if one.split == split), key=lambda one: one.id)
            write_dialogues(some, Path(f"data/dialogues/{split}.parquet"))
        chosen = params(epochs=1, batch_size=16, max_length=32)
        dbt.main("dbt", chosen)
        label_references.main("dbt", Path("models/dbt"), chosen)
        test = [one for d in dialogues if d.split == "test" for one in examples(d, "every", 3)]
        for variant, reply in (("base", lambda one: "Try to sleep."), ("sft", lambda one: one.target)):
            rows = [
                {"id": e.id, "label": e.label, "context": [vars(t) for t in e.context], "reply": reply(e)} for e in test
            ]
            write_replies(rows, Path(f"data/replies/{variant}.parquet"))
            label_scores.main(variant, chosen, "dbt")
        for variant in ("base", "sft"):
            intervals.main(variant, chosen, "dbt")
    return folder


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_classifier_learns_the_sample(trained):
    found = read_json(trained / "metrics/scorers/dbt.json")
    assert found["accuracy"] > found["majority_accuracy"] + 30
    assert found["macro_f1"] > found["majority_macro_f1"] + 30
    assert {f"f1_{label}" for label in LABELS} < found.keys() and 0 <= found["calibration_error"] <= 100
    settings = read_json(trained / "models/dbt/classifier.json")
    assert settings["labels"] == list(LABELS) and settings["classifier"] == "trained on esconv_sample"


def test_replies_of_people_have_no_gap_and_advice_has_one(trained):
    people, advice = (read_json(trained / f"metrics/dbt/{variant}.json") for variant in ("sft", "base"))
    assert people["dbt_gap"] == people["dbt_diff"] == 0  # the same inputs in another order
    assert advice["dbt_gap"] > 2 and advice["dbt_diff"] > 2
    assert advice["dbt_adherence"] < people["dbt_adherence"]
    for stage in STAGES:
        assert people[f"dbt_{stage}"] == people[f"dbt_reference_{stage}"] == advice[f"dbt_reference_{stage}"]
    bounds = read_json(trained / "metrics/intervals/dbt/base.json")
    assert bounds["dbt_gap.low"] <= advice["dbt_gap"] <= bounds["dbt_gap.high"]
    assert not [name for name in bounds if name.startswith("dbt_reference")]
    other = read_json(trained / "metrics/intervals/dbt/sft.json")
    assert other["dbt_gap.diff"] == pytest.approx(-advice["dbt_gap"], abs=1e-3) and other["dbt_gap.diff_high"] < 0


def test_a_reference_that_is_missing_is_named(trained, monkeypatch, tmp_path):
    rows = pq.read_table(trained / "data/references_dbt.parquet")
    pq.write_table(rows.slice(1), tmp_path / "some.parquet")
    first = rows["id"][0].as_py()
    with pytest.raises(DataError, match=f"lacks 1 examples, first {first}: run `dvc repro x@x`"):
        label_scores.references(tmp_path / "some.parquet", rows["id"].to_pylist(), LABELS, "x@x")
    with pytest.raises(DataError, match="missing: run `dvc repro generate@base`"):
        label_scores.read(tmp_path / "base.parquet", "generate@base")


def test_other_acts_by_config_alone(tmp_path, monkeypatch):
    """A corpus whose acts have other names, and a table for them: no code."""
    monkeypatch.chdir(tmp_path)
    Path("stages").symlink_to(ROOT / "stages")
    shutil.copytree(SAMPLE, "data/raw/mine")
    for path in Path("data/raw/mine").glob("*.txt"):
        lines = path.read_text(encoding="utf-8").replace('"strategy": "', '"strategy": "my ').splitlines()
        path.write_text("\n".join(lines[:8]), encoding="utf-8")
    table = read_stages(ROOT / "data/dbt_stages.csv")
    Path("mine.csv").write_text(
        "strategy,stage,source\n" + "".join(f"my {act},{stage},me\n" for act, stage in table.items()), encoding="utf-8"
    )
    dbt.main("dbt", params(corpus="mine", stages="mine.csv", epochs=1, batch_size=16, max_length=16))
    settings = read_json(Path("models/dbt/classifier.json"))
    assert (settings["classifier"], settings["stages"]) == ("trained on mine", "mine.csv")
    assert int(settings["train_turns"]) > 30
    assert len(stage_probabilities(Path("models/dbt"), CONTEXTS, REPLIES, CPU)[0]) == 5


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
    drawn = bootstrap({name: np.array(column) for name, column in columns.items()}, None, 500, 13)
    # A draw holds either example alone or both: gaps of 10, 5 and 7.5.
    assert (drawn["dbt_gap.low"], drawn["dbt_gap.high"]) == pytest.approx((5, 10))
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


def test_dialogues_without_acts_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "valid", "test"):
        turns = (Turn("user", "a"), Turn("assistant", "b"))
        write_dialogues([Dialogue("1", "x", split, "sad", turns)], Path(f"data/dialogues/{split}.parquet"))
    with pytest.raises(DataError, match="fewer than two labels"):
        label_turns(dbt.read(params().dbt), read_stages(ROOT / "data/dbt_stages.csv"), LABELS, 1, "dbt.table")
