import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.evaluate import RepliesError, evaluate, main, read
from stages.files import write_json
from stages.scoring.overlap import overlap

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


def test_main_writes_the_metrics_and_their_signature():
    write(table())
    main(["sft"])
    metrics = json.loads(Path("metrics/sft.json").read_text())
    expected = overlap([row[4] for row in ROWS], [row[3] for row in ROWS])
    # one pair right, one tie, one wrong, one row without a rejected reply: (1 + 1/2 + 0) / 3
    assert metrics == {name: round(value, 4) for name, value in expected.items()} | {"preference_accuracy": 50.0}
    # i am sorry . | (nothing) | oh no , what happened ? | i am sorry .
    assert metrics["reply_words"] == 3.5
    assert (metrics["empty_share"], metrics["repeated_share"]) == (25.0, 50.0)
    signature = json.loads(Path("metrics/sft.signature.json").read_text())
    assert (signature["examples"], signature["preference_examples"]) == ("4", "3")


def test_the_files_end_in_a_newline_and_nothing_else_is_left():
    write(table())
    main(["sft"])
    assert sorted(path.name for path in Path("metrics").iterdir()) == ["sft.json", "sft.signature.json"]
    assert all(path.read_text().endswith("\n}\n") for path in Path("metrics").iterdir())


def test_two_runs_write_the_same_bytes():
    write(table())
    main(["sft"])
    first = [path.read_bytes() for path in sorted(Path("metrics").iterdir())]
    main(["sft"])
    assert [path.read_bytes() for path in sorted(Path("metrics").iterdir())] == first


def test_the_order_of_the_rows_does_not_matter():
    replies = read(write(table()))
    assert evaluate(replies.iloc[::-1]) == evaluate(replies)


def test_without_rejected_replies_there_is_no_preference_accuracy():
    metrics, signature = evaluate(read(write(table([ROWS[3]]))))
    assert "preference_accuracy" not in metrics
    assert signature["preference_examples"] == "0"


def test_a_column_of_nulls_written_by_pandas():
    # pandas writes an all-null column without a type.
    rows = [dict(zip(SCHEMA.names, ROWS[3], strict=True))]
    Path("replies.parquet").write_bytes(pd.DataFrame(rows).to_parquet())
    assert "preference_accuracy" not in evaluate(read(Path("replies.parquet")))[0]


@pytest.mark.parametrize("column", SCHEMA.names)
def test_a_missing_column(column):
    write(table().drop_columns([column]))
    with pytest.raises(RepliesError, match=rf"data/replies/sft\.parquet: column {column} is missing"):
        main(["sft"])


def test_no_rows():
    write(table([]))
    with pytest.raises(RepliesError, match=r"data/replies/sft\.parquet: there are no rows"):
        main(["sft"])


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
    with pytest.raises(RepliesError, match=rf"data/replies/sft\.parquet: column {column}, row 2 \(id d:3\)"):
        main(["sft"])
    assert not Path("metrics").exists()


@pytest.mark.parametrize(("column", "kind"), [("reply", "a text"), ("reference_logp", "a finite number")])
def test_a_column_of_another_kind(column, kind):
    values = pa.array([1] * len(ROWS)) if column == "reply" else pa.array(["-1"] * len(ROWS))
    write(table().set_column(SCHEMA.get_field_index(column), column, values))
    with pytest.raises(RepliesError, match=rf"column {column}, row 0 \(id d:1\): .* is not {kind}"):
        main(["sft"])


def test_a_missing_file():
    with pytest.raises(RepliesError, match=r"data/replies/dpo\.parquet is missing: run `dvc repro generate@dpo`"):
        main(["dpo"])


def test_a_file_of_another_format():
    write(table()).write_text("id,reply\n")
    with pytest.raises(RepliesError, match=r"data/replies/sft\.parquet is no valid parquet file"):
        main(["sft"])


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
