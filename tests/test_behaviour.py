"""What a counsellor does in a reply: labelled sentences, the two classifiers, and the metrics made of them."""

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attune.classifiers.behaviour.classifier import BEHAVIOURS, LABELS, probabilities, sentences
from attune.classifiers.behaviour.scores import metrics, per_example, reflection_to_question
from attune.config.params import check, load
from attune.corpora.readers.miti_sentences import FILE, read, split_of
from attune.data.dialogue import Dialogue, Turn, examples, read_dialogues, write_dialogues
from attune.generation.answer import write_replies
from attune.labels.miti import read_adherence
from attune.runtime.errors import DataError, ModelError, ParamsError
from attune.scoring.intervals.bootstrap import intervals as bootstrap
from stages import behaviour, intervals, label_references, label_scores
from stages.download import needed

ROOT = Path(__file__).resolve().parents[1]
BASE = load(ROOT / "params.yaml")
CPU = replace(BASE.hardware, threads=1, dtype="fp32")
TABLE = read_adherence(ROOT / "data/miti_adherence.csv")
SAID = {
    "question": "What about {}?",
    "reflection": "You feel that {} matters.",
    "therapist_input": "Try {} each day.",
    "other": "Mm-hmm, {}.",
}
THINGS = ("walking", "sleep", "the patch", "your sister", "the group", "work", "music", "home")


def params(**more):
    chosen = {
        "classifiers": {"behaviour": "models/behaviour"},
        "variants": dict.fromkeys(("base", "sft"), "models/behaviour"),
    }
    short = {"epochs": 2, "batch_size": 8, "max_length": 16, "learning_rate": 4e-4}
    return replace(
        BASE,
        hardware=CPU,
        corpus=replace(BASE.corpus, name="annomi", targets="every", max_context_turns=1),
        evaluate=replace(BASE.evaluate, resamples=100),
        behaviour=replace(BASE.behaviour, **chosen, **short),
        miti=replace(BASE.miti, **(short | {"max_length": 24, "epochs": 3} | more)),
    )


def dialogue(split, i):
    turns = []
    for k, (act, text) in enumerate(SAID.items()):
        turns += [Turn("user", "I do not know.", "neutral"), Turn("assistant", text.format(THINGS[(i + k) % 8]), act)]
    return Dialogue(f"{split}/{i}", "annomi", split, "smoking", tuple(turns), "high")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which both classifiers learnt little corpora and scored two variants."""
    folder = tmp_path_factory.mktemp("behaviour")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("stages", "data/miti_adherence.csv", "data/sample"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).symlink_to(ROOT / name)
        for split, count in (("train", 20), ("valid", 2), ("test", 6)):
            write_dialogues([dialogue(split, i) for i in range(count)], Path(f"data/dialogues/{split}.parquet"))
        behaviour.main("behaviour", params())
        label_references.main("behaviour", Path("models/behaviour"), params())
        some = [e for d in read_dialogues(Path("data/dialogues/test.parquet")) for e in examples(d, "every", 1)]
        for variant, reply in (("base", lambda one: "What about sleep?"), ("sft", lambda one: one.target)):
            rows = [
                {"id": e.id, "label": e.label, "context": [vars(t) for t in e.context], "reply": reply(e)} for e in some
            ]
            write_replies(rows, Path(f"data/replies/{variant}.parquet"))
            label_scores.main(variant, params(), "behaviour")
        for variant in ("base", "sft"):
            intervals.main(variant, params(), "behaviour")
    return folder


def test_both_classifiers_learn(trained):
    found = read_json(trained / "metrics/scorers/behaviour.json")
    assert found["behaviour_accuracy"] > found["behaviour_majority_accuracy"] + 30
    assert found["miti_macro_f1"] > found["miti_majority_macro_f1"] + 15
    names = {"calibration_error", "majority_macro_f1", "valid_accuracy", "valid_macro_f1"}
    expected = {f"behaviour_{name}" for name in (*names, *(f"f1_{label}" for label in BEHAVIOURS))}
    expected |= {f"miti_{name}" for name in (*names, "f1_adherent", "f1_non_adherent", "f1_neither")}
    assert expected < found.keys()
    settings = read_json(trained / "models/behaviour/miti/classifier.json")
    assert (settings["classifier"], settings["context_turns"]) == ("trained on sample", 0)


def test_a_question_to_everything_has_no_reflection(trained):
    people, asking = (read_json(trained / f"metrics/behaviour/{variant}.json") for variant in ("sft", "base"))
    assert asking["behaviour_questions"] == 100 and asking["behaviour_reflection_to_question"] == 0
    for name in ("reflections", "questions", "reflection_to_question", "adherent", "non_adherent"):
        human = people[f"behaviour_reference_{name}"]
        assert people[f"behaviour_{name}"] == human == asking[f"behaviour_reference_{name}"]
    bounds = read_json(trained / "metrics/intervals/behaviour/sft.json")
    ratio = people["behaviour_reflection_to_question"]
    assert bounds["behaviour_reflection_to_question.low"] <= ratio <= bounds["behaviour_reflection_to_question.high"]
    assert bounds["behaviour_reflection_to_question.diff"] == pytest.approx(ratio, abs=1e-3)
    assert not [name for name in bounds if "reference" in name]
    named = read_json(trained / "metrics/behaviour/sft.signature.json")
    assert (named["behaviour_classifier"], named["miti_classifier"]) == ("trained on annomi", "trained on sample")


def test_a_reply_without_words_does_nothing(trained):
    (row, spoken) = probabilities(trained / "models/behaviour", [(), ()], [" ...", "You are brave. Stop it!"], CPU)
    assert row == [0, 0, 0, 1, 0, 0] and len(spoken) == len(LABELS)
    assert sum(spoken[:4]) == pytest.approx(1) and set(spoken[4:]) <= {0, 0.5, 1}
    with pytest.raises(ModelError, match=r"classifier\.json is missing: run `dvc repro behaviour@behaviour`"):
        probabilities(trained / "models", [()], ["Hello."], CPU)


def test_sentences_of_a_text():
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


def test_the_interval_of_the_ratio_is_that_of_sums():
    reflect, ask = [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]
    columns = per_example([reflect, ask], [ask, ask])
    drawn = bootstrap({name: np.array(column) for name, column in columns.items()}, None, 500, 13)
    name = "behaviour_reflection_to_question"
    # Draws hold both (1 : 1), the question twice (0 : 2) or the reflection twice (2 : 0, which counts as 2 : 1).
    assert (drawn[f"{name}.low"], drawn[f"{name}.high"]) == (0, 2)
    many = per_example([reflect] * 400 + [ask] * 200, [ask] * 600)
    wide = bootstrap({name: np.array(column) for name, column in many.items()}, None, 2000, 13)
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
def test_sentences_that_do_not_fit(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, *lines))


def test_a_file_of_sentences_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"csv is missing: behaviour\.sentences names its folder"):
        read(tmp_path)


def test_a_label_that_the_table_lacks_is_named(tmp_path):
    folder = write(tmp_path, "Text,Ground truth", "One.,Hug", "Two.,Hug", "Three.,Warn")
    with pytest.raises(DataError, match=r"^behaviour\.table has no row for 1 acts of the corpus: 'Hug' \(2\)"):
        behaviour.label_sentences(folder, TABLE, [])
    with pytest.raises(DataError, match="fewer than two labels"):
        behaviour.label_sentences(write(tmp_path, "Text,Ground truth", "Three.,Warn"), TABLE, [])


def test_the_split_of_a_sentence_hangs_on_its_words_alone():
    counts = Counter(split_of(f"Sentence {i}.") for i in range(3000))
    assert counts["train"] == pytest.approx(2100, abs=130) and counts["test"] == pytest.approx(600, abs=110)
    assert {split_of(text) for text in ("You did well!", "you did well", " You  did WELL. ")} == {
        split_of("You did well!")
    }


def test_the_embedded_sentences_have_every_label():
    found = read(ROOT / "data/sample/miti_sentences")
    counts = Counter(one.act for one in found)
    assert counts.keys() == {act for act in TABLE if act[0].isupper()}
    assert min(counts.values()) >= 10 and len({one.text for one in found}) == len(found)
    with (ROOT / "data/sample/miti_sentences" / FILE).open(encoding="utf-8", newline="") as file:
        assert [row["Ground truth"] for row in csv.DictReader(file)] == [one.act for one in found]


@pytest.mark.corpora
def test_the_published_sentences(corpora_dir):
    labelled, _ = behaviour.label_sentences(corpora_dir / "mi", TABLE, [])
    assert {split: len(rows) for split, rows in labelled.items()} == {"train": 1193, "valid": 162, "test": 322}
    texts = {split: {one.reply.lower() for one in rows} for split, rows in labelled.items()}
    assert not texts["train"] & (texts["valid"] | texts["test"])
    assert Counter(one.label for one in labelled["test"]) == {0: 86, 1: 64, 2: 172}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"variants": {"other": "models/behaviour"}}, "behaviour.variants names other, none of variants"),
        ({"variants": {"base": "models/behaviour"}, "classifiers": {}}, "but behaviour.classifiers is empty"),
        ({"variants": {"sft": "models/behaviour"}}, "evaluate.reference = 'base' is none of behaviour.variants: sft"),
        ({"variants": {"base": "models/dbt"}}, "behaviour.variants.base = 'models/dbt'"),
        ({"context_turns": 0}, "behaviour.context_turns = 0"),
    ],
)
def test_params_that_do_not_fit(section, message):
    from ruamel.yaml import YAML

    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["behaviour"] |= {"classifiers": {"behaviour": "models/behaviour"}} | section
    with pytest.raises(ParamsError, match=message.replace(".", r"\.")):
        check(values, "conf")


def test_download_takes_what_the_classifiers_learn_from():
    assert "mi" in needed(params(corpus="mi")) and "mi" not in needed(replace(BASE, miti=params(corpus="mi").miti))
    assert "sample" not in needed(params())
