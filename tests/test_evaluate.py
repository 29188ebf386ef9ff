"""The stages that score replies: their files, metrics and signatures, and replies that do not fit."""

import json
from dataclasses import replace
from pathlib import Path

import factory
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import random_classifiers

from attune.classifiers import epitome
from attune.classifiers.epitome.model import MECHANISMS
from attune.classifiers.epitome.scores import per_example
from attune.config.schema import bertscore_encoder
from attune.runtime.errors import DataError
from attune.scoring.common.replies import read, read_references
from attune.scoring.text.overlap import overlap
from attune.scoring.text.scores import evaluate, score
from stages import evaluate as stage
from stages import scores as classifier_stage

PARAMS = factory.params()
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "label": pa.string(),
        "context": pa.list_(pa.struct({"role": pa.string(), "text": pa.string(), "act": pa.string()})),
        "reference": pa.string(),
        "reply": pa.string(),
        "rejected": pa.string(),
        "reference_logp": pa.float64(),
        "rejected_logp": pa.float64(),
    }
)
CONTEXT = [{"role": "user", "text": "My dog died.", "act": None}]
ROWS = [
    ("d:1", "sad", CONTEXT, "I am so sorry.", "I am sorry.", "That is great!", -1.5, -2.5),
    ("d:2", "joyful", CONTEXT, "That is great!", "", "I am so sorry.", -2.0, -2.0),
    ("d:3", "sad", CONTEXT, "What happened?", "Oh no, what happened?", "Congratulations!", -3.0, -2.0),
    ("d:4", "sad", CONTEXT, "How old was she?", "I am sorry.", None, None, None),
]


def table(rows=ROWS):
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


def write(replies, variant="sft"):
    path = Path("data/replies") / f"{variant}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(replies, path)
    return path


def with_value(row, column, value):
    values = dict(zip(SCHEMA.names, ROWS[row], strict=True)) | {column: value}
    return table([*ROWS[:row], tuple(values.values()), *ROWS[row + 1 :]])


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    return random_classifiers(tmp_path_factory.mktemp("classifiers") / "epitome")


@pytest.fixture
def models(classifiers):
    """The classifiers where the stage reads them, and levels of the references."""
    Path("models").mkdir()
    Path("models/epitome").symlink_to(classifiers)
    write_references()


def write_references(names=("d:4", "d:3", "d:2", "d:1"), levels=(0, 1, 2, 0)):
    """In another order than the replies."""
    Path("data/references").mkdir(parents=True, exist_ok=True)
    columns = {f"level_{short}": levels for short in MECHANISMS.values()}
    pd.DataFrame({"id": names, **columns}).to_parquet("data/references/epitome.parquet")


def run(params=PARAMS):
    """The text metrics and scores of a variant."""
    stage.main("sft", params)
    return read_json("metrics/text/sft.json"), pd.read_parquet("data/scores/text/sft.parquet")


def run_epitome():
    """EPITOME's metrics and scores of a variant."""
    classifier_stage.main("sft", "epitome", PARAMS)
    return read_json("metrics/epitome/sft.json"), pd.read_parquet("data/scores/epitome/sft.parquet")


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def scored(replies):
    """The scores with given BERTScores."""
    bert = {f"bertscore_{side}": [50.0 + i for i in range(len(replies))] for side in ("p", "r", "f1")}
    return score(replies, bert)


def test_metrics_and_signature_of_the_texts():
    write(table())
    metrics, scores = run()
    expected = overlap([row[4] for row in ROWS], [row[3] for row in ROWS])
    assert {name: metrics[name] for name in expected} == {name: round(value, 4) for name, value in expected.items()}
    # one pair right, one tie, one wrong, one row without a rejected reply: (1 + 1/2 + 0) / 3
    assert metrics["preference_accuracy"] == 50.0
    # i am sorry . | (nothing) | oh no , what happened ? | i am sorry .
    assert metrics["reply_words"] == 3.5
    assert (metrics["empty_share"], metrics["repeated_share"]) == (25.0, 50.0)
    assert 0 < metrics["bertscore_f1"] < 75 and scores["bertscore_f1"][1] == 0
    signature = read_json("metrics/text/sft.signature.json")
    assert (signature["examples"], signature["preference_examples"]) == ("4", "3")
    assert (signature["bertscore_layer"], signature["bertscore_encoder"]) == ("5", "all-MiniLM-L6-v2")
    assert signature["bertscore_encoder_sha256"].startswith("53aa5117")
    assert all(isinstance(value, str) for value in signature.values())


def test_metrics_and_signature_of_a_classifier(models):
    write(table())
    metrics, scores = run_epitome()
    assert {key for key in metrics if "_er" in key} == {"diff_er", "level_er", "reference_level_er"}
    # The levels of the references by id, not by row: 0, 1, 2, 0 of d:4 to d:1.
    assert scores["reference_level_er"].tolist() == [0, 2, 1, 0] and metrics["reference_level_er"] == 0.75
    assert (scores["diff_ip"] == (scores["level_ip"] - scores["reference_level_ip"]) ** 2).all()
    assert metrics == {name: round(scores[name].mean(), 4) for name in metrics}
    signature = read_json("metrics/epitome/sft.signature.json")
    assert (signature["epitome_examples"], signature["epitome_classifiers"]) == ("4", "random")


def test_metrics_are_the_means_of_the_scores():
    write(table())
    metrics, scores = run()
    assert scores["id"].tolist() == ["d:1", "d:2", "d:3", "d:4"] and scores["label"][1] == "joyful"
    corpus = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "dist_1", "dist_2", "dist_3", "repeated_share"}
    corpus |= {"reference_opening_share", "reference_act_share"}
    means = scores.drop(columns=["id", "label"]).mean()
    counts = {name for name in scores if name.startswith("bleu_")}
    assert set(means.index) - counts == metrics.keys() - corpus
    assert {name: metrics[name] for name in metrics.keys() - corpus} == {
        name: round(means[name], 4) for name in metrics.keys() - corpus
    }


def test_levels_depend_on_the_last_user_turn(models):
    write(table())
    _, before = run_epitome()
    changed = [(*row[:2], [*row[2], {"role": "assistant", "text": "Oh.", "act": None}], *row[3:]) for row in ROWS]
    write(table(changed))
    _, after = run_epitome()
    assert before.equals(after)


def test_bertscore_layer():
    write(table())
    first, _ = run()
    second, _ = run(replace(PARAMS, bertscore=replace(PARAMS.bertscore, layer=6)))
    assert first["bertscore_f1"] != second["bertscore_f1"] and first["rouge_l"] == second["rouge_l"]


def test_bertscore_encoder():
    assert bertscore_encoder(PARAMS) == PARAMS.encoder
    settings = replace(PARAMS.bertscore, hub_id="some/model", revision="abc")
    encoder = bertscore_encoder(replace(PARAMS, bertscore=settings))
    assert (encoder.source, encoder.origin, encoder.revision, encoder.sha256) == ("hub", "some/model", "abc", None)


def test_diff_by_hand():
    references = pd.DataFrame({f"level_{short}": [2, 0, 1, 0] for short in MECHANISMS.values()})
    metrics = epitome.metrics(per_example({mechanism: [0, 2, 1, 1] for mechanism in MECHANISMS}, references))
    # levels of replies 0 2 1 1, of references 2 0 1 0: 4 + 4 + 0 + 1
    assert metrics["diff_er"] == metrics["diff_ip"] == metrics["diff_ex"] == 2.25
    assert (metrics["level_er"], metrics["reference_level_er"]) == (1.0, 0.75)


def test_runs_write_equal_bytes(models):
    write(table())
    written = []
    for _ in range(2):
        run(), run_epitome()
        files = sorted(path for folder in ("metrics", "data/scores") for path in Path(folder).rglob("*.*"))
        written.append({path: path.read_bytes() for path in files})
    assert len(written[0]) == 6 and written[0] == written[1]


def test_row_order_does_not_change_scores(models):
    write(table())
    (metrics, scores), (levels, level_scores) = run(), run_epitome()
    write(table(ROWS[::-1]))
    (reversed_metrics, reversed_scores), (reversed_levels, reversed_level_scores) = run(), run_epitome()
    assert (metrics, levels) == (reversed_metrics, reversed_levels)
    assert scores.equals(reversed_scores.iloc[::-1].reset_index(drop=True))
    assert level_scores.equals(reversed_level_scores.iloc[::-1].reset_index(drop=True))


def test_example_without_reference_levels(models):
    write(table())
    write_references(("d:1", "d:2"), (0, 0))
    message = r"data/references/epitome\.parquet lacks 2 examples, first d:3: run `dvc repro references@epitome`"
    with pytest.raises(DataError, match=message):
        run_epitome()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is missing: run `dvc repro x`"), (b"id,level", "is no valid parquet file")]
)
def test_unreadable_references(content, message):
    if content:
        Path("a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.parquet {message}"):
        read_references(Path("a.parquet"), pd.DataFrame({"id": ["a"]}), "x")


def test_no_preference_accuracy_without_rejected_replies():
    replies = read(write(table([ROWS[3]])))
    assert "preference_accuracy" not in evaluate(replies, scored(replies))


def test_null_column_written_by_pandas():
    # pandas writes an all-null column without a type.
    rows = [dict(zip(SCHEMA.names, ROWS[3], strict=True))]
    Path("replies.parquet").write_bytes(pd.DataFrame(rows).to_parquet())
    replies = read(Path("replies.parquet"))
    assert "preference_accuracy" not in evaluate(replies, scored(replies))


@pytest.mark.parametrize("column", SCHEMA.names)
def test_missing_column(column):
    write(table().drop_columns([column]))
    with pytest.raises(DataError, match=rf"data/replies/sft\.parquet: column {column} is missing"):
        stage.main("sft", PARAMS)


def test_no_rows():
    write(table([]))
    with pytest.raises(DataError, match=r"data/replies/sft\.parquet: there are no rows"):
        stage.main("sft", PARAMS)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("reply", None),
        ("reference", None),
        ("reference_logp", None),
        ("rejected_logp", None),
        ("rejected_logp", float("nan")),
        ("rejected_logp", float("-inf")),
    ],
)
def test_invalid_value(column, value):
    write(with_value(2, column, value))
    with pytest.raises(DataError, match=rf"data/replies/sft\.parquet: column {column}, row 2 \(id d:3\)"):
        stage.main("sft", PARAMS)
    assert not Path("metrics").exists()


@pytest.mark.parametrize(("column", "kind"), [("reply", "a text"), ("reference_logp", "a finite number")])
def test_column_of_another_type(column, kind):
    values = pa.array([1] * len(ROWS)) if column == "reply" else pa.array(["-1"] * len(ROWS))
    write(table().set_column(SCHEMA.get_field_index(column), column, values))
    with pytest.raises(DataError, match=rf"column {column}, row 0 \(id d:1\): .* is not {kind}"):
        stage.main("sft", PARAMS)


def test_missing_file():
    with pytest.raises(DataError, match=r"data/replies/dpo\.parquet is missing: run `dvc repro generate@dpo`"):
        stage.main("dpo", PARAMS)


def test_file_of_another_format():
    write(table()).write_text("id,reply\n")
    with pytest.raises(DataError, match=r"data/replies/sft\.parquet is no valid parquet file"):
        stage.main("sft", PARAMS)
