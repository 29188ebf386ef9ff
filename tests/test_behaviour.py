"""Behaviours of a counsellor: labelled sentences, the two classifiers, and the metrics."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import factory
import numpy as np
import pandas as pd
import pytest
from helpers import score_variants

from attune.classifiers import behaviour
from attune.classifiers.behaviour.classifier import BEHAVIOURS, LABELS, probabilities, sentences
from attune.classifiers.behaviour.learn import label_sentences
from attune.classifiers.behaviour.scores import metrics, per_example, reflection_to_question
from attune.corpora.readers.miti_sentences import FILE, read_sentences, split_of
from attune.data.dialogue import Dialogue, Turn, write_dialogues
from attune.data.examples import examples
from attune.labels.miti import read_adherence
from attune.runtime.errors import DataError, ModelError
from attune.scoring.intervals.bootstrap import columns as numeric
from attune.scoring.intervals.bootstrap import intervals

ROOT = Path(__file__).resolve().parents[1]
BASE = factory.params()
CPU = BASE.hardware
TABLE = read_adherence(ROOT / "data/miti_adherence.csv")
TEMPLATES = {
    "question": "What about {}?",
    "reflection": "You feel that {} matters.",
    "therapist_input": "Try {} each day.",
    "other": "Mm-hmm, {}.",
}
TOPICS = ("walking", "sleep", "the patch", "your sister", "the group", "work", "music", "home")


def dialogue(split, i):
    turns = []
    for k, (act, text) in enumerate(TEMPLATES.items()):
        turns += [Turn("user", "I do not know.", "neutral"), Turn("assistant", text.format(TOPICS[(i + k) % 8]), act)]
    return Dialogue(f"{split}/{i}", "annomi", split, "smoking", tuple(turns), "high")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with both classifiers trained on small corpora, their metrics, and the scores of two variants."""
    folder = tmp_path_factory.mktemp("behaviour")
    short = {"batch_size": 8, "learning_rate": 4e-4}
    settings = replace(
        BASE.behaviour,
        **short,
        epochs=2,
        max_length=16,
        table=str(ROOT / "data/miti_adherence.csv"),
        sentences=str(ROOT / "data/sample/miti_sentences"),
        miti=replace(BASE.behaviour.miti, **short, epochs=3, max_length=24),
    )
    params = factory.params(behaviour=settings, corpus=factory.corpus(name="annomi", reader="annomi"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for split, count in (("train", 20), ("valid", 2), ("test", 6)):
            write_dialogues([dialogue(split, i) for i in range(count)], Path(f"data/dialogues/{split}.parquet"))
        quality = behaviour.train(params, folder / "checkpoints", folder / "models/behaviour")
    test = examples([dialogue("test", i) for i in range(6)], "every", 1)
    variants = {"people": lambda example: example.target, "questions": lambda _: "What about sleep?"}
    columns = score_variants(behaviour, folder / "models/behaviour", test, variants, CPU)
    return folder / "models/behaviour", quality, columns


@pytest.mark.slow
def test_both_classifiers_learn(trained):
    folder, found, _ = trained
    assert found["behaviour_accuracy"] > found["behaviour_majority_accuracy"] + 30
    assert found["miti_macro_f1"] > found["miti_majority_macro_f1"] + 15
    names = {"calibration_error", "majority_macro_f1", "valid_accuracy", "valid_macro_f1"}
    expected = {f"behaviour_{name}" for name in (*names, *(f"f1_{label}" for label in BEHAVIOURS))}
    expected |= {f"miti_{name}" for name in (*names, "f1_adherent", "f1_non_adherent", "f1_neither")}
    assert expected < found.keys()
    named = behaviour.signature(folder)
    assert (named["behaviour_classifier"], named["behaviour_context_turns"]) == ("trained on annomi", "1")
    assert named["miti_context_turns"] == "0" and named["miti_adherence"].endswith("data/miti_adherence.csv")


@pytest.mark.slow
def test_constant_questions_have_no_reflections(trained):
    _, _, columns = trained
    people, questions = (behaviour.metrics(columns[variant]) for variant in ("people", "questions"))
    assert questions["behaviour_questions"] == 100 and questions["behaviour_reflection_to_question"] == 0
    for name in ("reflections", "questions", "reflection_to_question", "adherent", "non_adherent"):
        human = people[f"behaviour_reference_{name}"]
        assert people[f"behaviour_{name}"] == human == questions[f"behaviour_reference_{name}"]
    scores, reference = (numeric(pd.DataFrame(columns[variant])) for variant in ("people", "questions"))
    bounds = intervals(scores, reference, 100, 13)
    ratio = people["behaviour_reflection_to_question"]
    assert bounds["behaviour_reflection_to_question.low"] <= ratio <= bounds["behaviour_reflection_to_question.high"]
    assert bounds["behaviour_reflection_to_question.diff"] == pytest.approx(ratio)
    assert not [name for name in bounds if "reference" in name]


@pytest.mark.slow
def test_replies_without_words(trained):
    folder, *_ = trained
    empty, two_sentences = probabilities(folder, [(), ()], [" ...", "You are brave. Stop it!"], CPU)
    assert empty == [0, 0, 0, 1, 0, 0] and len(two_sentences) == len(LABELS)
    assert sum(two_sentences[:4]) == pytest.approx(1) and set(two_sentences[4:]) <= {0, 0.5, 1}
    with pytest.raises(ModelError, match=r"classifier\.json is missing: run `dvc repro classifier@behaviour`"):
        probabilities(folder.parent, [()], ["Hello."], CPU)


def test_sentence_splitting():
    text = 'Well... I see!  "Do you?" No\nYes. 3.5 mg\n\n-- '
    assert sentences(text) == ["Well...", "I see!", '"Do you?" No', "Yes.", "3.5 mg"]
    assert sentences(" .\n") == []


def test_metrics_by_hand():
    reflect, ask, tell = [0.1, 0.8, 0.1, 0, 1, 0], [0.7, 0.1, 0.1, 0.1, 0.5, 0.25], [0, 0.1, 0.9, 0, 0, 1]
    columns = per_example([reflect, reflect, ask, tell], [ask] * 4)
    assert columns["behaviour_reflections"] == [100, 100, 0, 0]
    found = metrics(columns)
    assert (found["behaviour_reflection_to_question"], found["behaviour_reference_reflection_to_question"]) == (2, 0)
    assert (found["behaviour_reflections"], found["behaviour_questions"], found["behaviour_input"]) == (50, 25, 25)
    assert (found["behaviour_adherent"], found["behaviour_non_adherent"]) == (62.5, 31.25)
    assert found["behaviour_reference_adherent"] == 50
    # Without a question the count of reflections, as if there were one.
    assert metrics(per_example([reflect] * 3, [tell] * 3))["behaviour_reflection_to_question"] == 3
    assert (reflection_to_question(0, 0), reflection_to_question(3, 2)) == (0, 1.5)
    with pytest.raises(ValueError, match="no examples"):
        metrics(per_example([], []))
    with pytest.raises(ValueError, match="1 replies, but 2 human"):
        per_example([ask], [ask, ask])


def test_interval_of_the_ratio():
    reflect, ask = [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]
    columns = per_example([reflect, ask], [ask, ask])
    bounds = intervals({name: np.array(column) for name, column in columns.items()}, None, 500, 13)
    name = "behaviour_reflection_to_question"
    # Resamples hold both (1 : 1), the question twice (0 : 2) or the reflection twice (2 : 0, which counts as 2 : 1).
    assert (bounds[f"{name}.low"], bounds[f"{name}.high"]) == (0, 2)
    many = per_example([reflect] * 400 + [ask] * 200, [ask] * 600)
    wide = intervals({name: np.array(column) for name, column in many.items()}, None, 2000, 13)
    # The delta method: sd of R / Q is about (R / Q) sqrt(1 / R + 1 / Q).
    half = 1.96 * 2 * np.sqrt(1 / 400 + 1 / 200)
    assert (wide[f"{name}.high"] - wide[f"{name}.low"]) / 2 == pytest.approx(half, rel=0.1)


def write(folder, *lines):
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["Text,Label", "a,b"], r"csv:1: no column Ground truth; found Text, Label"),
        (["Text,Ground truth", "..., "], "holds no sentences"),
        (["Text,Ground truth", "Hello., "], r"csv:2: 'Hello\.' has no label"),
    ],
)
def test_invalid_sentences(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        read_sentences(write(tmp_path, *lines))


def test_missing_sentences(tmp_path):
    with pytest.raises(DataError, match=r"csv is missing: behaviour\.sentences names its folder"):
        read_sentences(tmp_path)


def test_unknown_labels(tmp_path):
    folder = write(tmp_path, "Text,Ground truth", "One.,Hug", "Two.,Hug", "Three.,Warn")
    with pytest.raises(DataError, match=r"^behaviour\.table has no row for 1 acts of the corpus: 'Hug' \(2\)"):
        label_sentences(folder, TABLE, [])
    with pytest.raises(DataError, match="fewer than two labels"):
        label_sentences(write(tmp_path, "Text,Ground truth", "Three.,Warn"), TABLE, [])


def test_split_depends_on_words():
    counts = Counter(split_of(f"Sentence {i}.") for i in range(3000))
    assert counts["train"] == pytest.approx(2100, abs=130) and counts["test"] == pytest.approx(600, abs=110)
    assert {split_of(text) for text in ("You did well!", "you did well", " You  did WELL. ")} == {
        split_of("You did well!")
    }


def test_sample_sentences():
    found = read_sentences(ROOT / "data/sample/miti_sentences")
    counts = Counter(one.act for one in found)
    assert counts.keys() == {act for act in TABLE if act[0].isupper()}
    assert min(counts.values()) >= 10 and len({one.text for one in found}) == len(found)
    with (ROOT / "data/sample/miti_sentences" / FILE).open(encoding="utf-8", newline="") as file:
        assert [row["Ground truth"] for row in csv.DictReader(file)] == [one.act for one in found]


@pytest.mark.corpora
def test_published_sentences(corpora_dir):
    labelled, _ = label_sentences(corpora_dir / "mi", TABLE, [])
    assert {split: len(rows) for split, rows in labelled.items()} == {"train": 1193, "valid": 162, "test": 322}
    texts = {split: {one.reply.lower() for one in rows} for split, rows in labelled.items()}
    assert not texts["train"] & (texts["valid"] | texts["test"])
    assert Counter(one.label for one in labelled["test"]) == {0: 86, 1: 64, 2: 172}
