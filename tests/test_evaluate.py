import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import random_classifiers
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from attune.classifiers.epitome.model import MECHANISMS
from attune.config.params import check
from attune.config.schema import bertscore_encoder
from attune.runtime.errors import DataError
from attune.runtime.io import write_json
from attune.scoring.common.replies import read
from attune.scoring.text.overlap import overlap
from attune.scoring.text.scores import evaluate, score
from stages.evaluate import main, read_references

ROOT = Path(__file__).parents[1]
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


def params(*overrides):
    overrides = ["compute.threads=1", *overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return check(OmegaConf.to_container(compose("config", overrides=overrides), resolve=True), "conf")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    return random_classifiers(tmp_path_factory.mktemp("classifiers") / "epitome")


@pytest.fixture
def models(classifiers):
    """The classifiers where the stage looks for them, and levels of the references."""
    Path("models").mkdir()
    Path("models/epitome").symlink_to(classifiers)
    write_references()


def write_references(names=("d:4", "d:3", "d:2", "d:1"), levels=(0, 1, 2, 0)):
    """In another order than the replies."""
    Path("data").mkdir(exist_ok=True)
    pd.DataFrame({"id": names, **{f"level_{key}": levels for key in MECHANISMS.values()}}).to_parquet(
        "data/references.parquet"
    )


def run(*overrides):
    main("sft", params(*overrides))
    return json.loads(Path("metrics/sft.json").read_text()), pd.read_parquet("data/scores/sft.parquet")


def scored(replies, levels=(0, 0, 0, 0)):
    """The scores with given levels and BERTScore."""
    count = len(replies)
    references = pd.DataFrame({f"level_{key}": [2, 0, 1, 0][:count] for key in MECHANISMS.values()})
    given = {mechanism: list(levels[:count]) for mechanism in MECHANISMS}
    bert = {f"bertscore_{side}": [50.0 + i for i in range(count)] for side in ("p", "r", "f1")}
    return score(replies, bert, given, references)


def test_main_writes_the_metrics_and_their_signature(models):
    write(table())
    metrics, scores = run()
    expected = overlap([row[4] for row in ROWS], [row[3] for row in ROWS])
    assert {name: metrics[name] for name in expected} == {name: round(value, 4) for name, value in expected.items()}
    # one pair right, one tie, one wrong, one row without a rejected reply: (1 + 1/2 + 0) / 3
    assert metrics["preference_accuracy"] == 50.0
    # i am sorry . | (nothing) | oh no , what happened ? | i am sorry .
    assert metrics["reply_words"] == 3.5
    assert (metrics["empty_share"], metrics["repeated_share"]) == (25.0, 50.0)
    assert {key for key in metrics if "_er" in key} == {"diff_er", "level_er", "reference_level_er"}
    # The levels of the references by id, not by row: 0, 1, 2, 0 of d:4 to d:1.
    assert scores["reference_level_er"].tolist() == [0, 2, 1, 0] and metrics["reference_level_er"] == 0.75
    assert (scores["diff_ip"] == (scores["level_ip"] - scores["reference_level_ip"]) ** 2).all()
    assert 0 < metrics["bertscore_f1"] < 75 and scores["bertscore_f1"][1] == 0
    signature = json.loads(Path("metrics/sft.signature.json").read_text())
    assert (signature["examples"], signature["preference_examples"]) == ("4", "3")
    assert (signature["bertscore_layer"], signature["bertscore_encoder"]) == ("5", "all-MiniLM-L6-v2")
    assert signature["bertscore_encoder_sha256"].startswith("53aa5117")
    assert signature["epitome_classifiers"] == "random"
    assert all(isinstance(value, str) for value in signature.values())


def test_the_scores_of_the_examples_have_the_metrics_as_their_means(models):
    write(table())
    metrics, scores = run()
    assert scores["id"].tolist() == ["d:1", "d:2", "d:3", "d:4"] and scores["label"][1] == "joyful"
    corpus = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "dist_1", "dist_2", "dist_3", "repeated_share"}
    means = scores.drop(columns=["id", "label"]).mean()
    counts = {name for name in scores if name.startswith("bleu_")}
    assert set(means.index) - counts == metrics.keys() - corpus
    assert {name: metrics[name] for name in metrics.keys() - corpus} == {
        name: round(means[name], 4) for name in metrics.keys() - corpus
    }
    assert not corpus & set(scores)


def test_levels_hang_on_the_users_last_turn(models):
    write(table())
    _, before = run()
    changed = [(*row[:2], [*row[2], {"role": "assistant", "text": "Oh.", "act": None}], *row[3:]) for row in ROWS]
    write(table(changed))
    _, after = run()
    assert before.equals(after)


def test_the_layer_is_the_params(models):
    write(table())
    first, _ = run()
    second, _ = run("bertscore.layer=6")
    assert first["bertscore_f1"] != second["bertscore_f1"] and first["rouge_l"] == second["rouge_l"]


def test_bertscore_may_have_an_encoder_of_its_own():
    assert bertscore_encoder(params()) == params().encoder
    own = bertscore_encoder(params("bertscore.hub_id=some/model", "bertscore.revision=abc"))
    assert (own.package, own.hub_id, own.revision, own.sha256) == (None, "some/model", "abc", None)


def test_diff_by_hand():
    metrics = evaluate(replies := read(write(table())), scored(replies, levels=(0, 2, 1, 1)))
    # levels of replies 0 2 1 1, of references 2 0 1 0: 4 + 4 + 0 + 1
    assert metrics["diff_er"] == metrics["diff_ip"] == metrics["diff_ex"] == 2.25
    assert (metrics["level_er"], metrics["reference_level_er"]) == (1.0, 0.75)


def test_the_files_end_in_a_newline_and_nothing_else_is_left(models):
    write(table())
    run()
    assert sorted(path.name for path in Path("metrics").iterdir()) == ["sft.json", "sft.signature.json"]
    assert all(path.read_text().endswith("\n}\n") for path in Path("metrics").iterdir())


def test_two_runs_write_the_same_bytes(models):
    write(table())
    run()
    paths = [*sorted(Path("metrics").iterdir()), Path("data/scores/sft.parquet")]
    first = [path.read_bytes() for path in paths]
    run()
    assert [path.read_bytes() for path in paths] == first


def test_the_order_of_the_rows_does_not_matter(models):
    write(table())
    forward, scores = run()
    write(table(ROWS[::-1]))
    backward, reverse = run()
    assert forward == backward
    assert scores.equals(reverse.iloc[::-1].reset_index(drop=True))


def test_an_example_without_levels_of_its_reference(models):
    write(table())
    write_references(("d:1", "d:2"), (0, 0))
    with pytest.raises(DataError, match=r"data/references\.parquet has no levels of 2 examples, first d:3"):
        run()


def test_missing_levels_of_the_references():
    with pytest.raises(DataError, match=r"references\.parquet is missing: run `dvc repro references`"):
        read_references(Path("references.parquet"), pd.DataFrame({"id": ["a"]}))


def test_without_rejected_replies_there_is_no_preference_accuracy():
    replies = read(write(table([ROWS[3]])))
    assert "preference_accuracy" not in evaluate(replies, scored(replies))


def test_a_column_of_nulls_written_by_pandas():
    # pandas writes an all-null column without a type.
    rows = [dict(zip(SCHEMA.names, ROWS[3], strict=True))]
    Path("replies.parquet").write_bytes(pd.DataFrame(rows).to_parquet())
    replies = read(Path("replies.parquet"))
    assert "preference_accuracy" not in evaluate(replies, scored(replies))


@pytest.mark.parametrize("column", SCHEMA.names)
def test_a_missing_column(column):
    write(table().drop_columns([column]))
    with pytest.raises(DataError, match=rf"data/replies/sft\.parquet: column {column} is missing"):
        main("sft", params())


def test_no_rows():
    write(table([]))
    with pytest.raises(DataError, match=r"data/replies/sft\.parquet: there are no rows"):
        main("sft", params())


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
def test_a_value_that_is_missing_or_no_number(column, value):
    write(with_value(2, column, value))
    with pytest.raises(DataError, match=rf"data/replies/sft\.parquet: column {column}, row 2 \(id d:3\)"):
        main("sft", params())
    assert not Path("metrics").exists()


@pytest.mark.parametrize(("column", "kind"), [("reply", "a text"), ("reference_logp", "a finite number")])
def test_a_column_of_another_kind(column, kind):
    values = pa.array([1] * len(ROWS)) if column == "reply" else pa.array(["-1"] * len(ROWS))
    write(table().set_column(SCHEMA.get_field_index(column), column, values))
    with pytest.raises(DataError, match=rf"column {column}, row 0 \(id d:1\): .* is not {kind}"):
        main("sft", params())


def test_a_missing_file():
    with pytest.raises(DataError, match=r"data/replies/dpo\.parquet is missing: run `dvc repro generate@dpo`"):
        main("dpo", params())


def test_a_file_of_another_format():
    write(table()).write_text("id,reply\n")
    with pytest.raises(DataError, match=r"data/replies/sft\.parquet is no valid parquet file"):
        main("sft", params())


def test_json_that_cannot_be_written_leaves_the_old_file():
    path = Path("folder/values.json")
    write_json(path, {"a": 1.5, "b": "é"})
    with pytest.raises(ValueError, match=r"folder/values\.json"):
        write_json(path, {"a": float("nan")})
    assert path.read_bytes() == '{\n  "a": 1.5,\n  "b": "é"\n}\n'.encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_symbolic_link_is_replaced_and_its_target_left_alone():
    Path("cached.json").write_text("old")
    Path("values.json").symlink_to("cached.json")
    write_json(Path("values.json"), {"a": 1})
    assert Path("cached.json").read_text() == "old"
    assert not Path("values.json").is_symlink()


def test_a_write_that_fails_leaves_no_temporary_file():
    Path("values.json").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(OSError):
        write_json(Path("values.json"), {"a": 1})
    assert [path.name for path in Path().iterdir()] == ["values.json"]
