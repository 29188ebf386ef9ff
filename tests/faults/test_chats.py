"""Broken chats in every kind of file: each is refused by file and line or row, and nothing of it is read or written."""

import csv
import gzip
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attune.corpora.readers.messages import USUAL, stream
from attune.runtime.errors import DataError

GOOD = [{"role": "user", "content": "My café closed, today."}, {"role": "assistant", "content": "Oh no!"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


def with_turn(*turns) -> dict:
    return {"messages": [*GOOD, *turns]}


# A broken dialogue and what the error says of it.
BROKEN = {
    "a tool's result": (
        with_turn({"role": "tool", "content": "7", "tool_call_id": "1"}),
        "turn 3: role 'tool' is none of",
    ),
    "a call of a tool": (
        with_turn({"role": "assistant", "content": None, "tool_calls": [CALL]}),
        "turn 3: the text of assistant should not be empty, found null",
    ),
    "a function's result": (with_turn({"role": "function", "name": "f", "content": "7"}), "turn 3: role 'function'"),
    "an observation": ({"conversations": [{"from": "observation", "value": "7"}]}, "turn 1: role 'observation'"),
    "another role": (with_turn({"role": "narrator", "content": "Night."}), "turn 3: role 'narrator'"),
    "a role that is a number": (with_turn({"role": 1, "content": "Hi."}), "turn 3: role 1 is none of"),
    "a role that is null": (with_turn({"role": None, "content": "Hi."}), "turn 3: role null is none of"),
    "no role": (with_turn({"content": "Hi."}), "turn 3: (no key role or from|role null)"),
    "no content": (with_turn({"role": "user"}), "turn 3: (no key content or value|the text of user)"),
    "empty content": (with_turn({"role": "user", "content": ""}), "turn 3: the text of user should not be empty"),
    "white content": (with_turn({"role": "user", "content": " \n\t"}), "turn 3: the text of user should not be empty"),
    "content that is a number": (with_turn({"role": "user", "content": 7}), "turn 3: the text of user .*found 7"),
    "content that is an object": (
        with_turn({"role": "user", "content": {"a": "b"}}),
        "turn 3: the text of user .*{'a'",
    ),
    "an image": (with_turn({"role": "user", "content": [IMAGE]}), "turn 3: a part of the content is 'image_url'"),
    "text and an image": (
        with_turn({"role": "user", "content": [{"type": "text", "text": "See."}, IMAGE]}),
        "turn 3: a part of the content is 'image_url'",
    ),
    "parts without a type": (with_turn({"role": "user", "content": ["Hi."]}), "turn 3: a part of the content is"),
    "no parts": (with_turn({"role": "user", "content": []}), "turn 3: the text of user should not be empty"),
    "a late system turn": (with_turn({"role": "system", "content": "Stop."}), "turn 3: a system turn after"),
    "nested lists": ({"messages": [GOOD]}, "turn 1: expected an object with role and content, found \\[{'role'"),
    "texts alone": ({"messages": ["Hi.", "Hello."]}, "turn 1: expected an object with role and content, found 'Hi.'"),
    "a turn that is null": (
        {"messages": [None, *GOOD]},
        "turn 1: expected an object with role and content, found null",
    ),
    "no turns": ({"messages": []}, "messages should be a list of turns, found \\[\\]"),
    "messages that are null": ({"messages": None}, "no column messages or conversations"),
    "messages in a text": ({"messages": "user: Hi."}, "messages should be a list of turns, found 'user: Hi.'"),
    "messages in an object": ({"messages": {"role": "user"}}, "messages should be a list of turns, found {'role'"),
    "another column": (
        {"dialog": GOOD},
        "no column messages or conversations or conversation or turns; found .*dialog",
    ),
    "half of a surrogate pair": (with_turn({"role": "user", "content": "a\ud83d"}), "turn 3: half of a surrogate pair"),
    "an empty id": ({"id": " ", "messages": GOOD}, "id should be a text or a whole number"),
    "an id that is a list": ({"id": ["a"], "messages": GOOD}, "id should be a text or a whole number, found \\['a'\\]"),
    "an id that is a fraction": ({"id": 1.5, "messages": GOOD}, "id should be a text or a whole number, found 1.5"),
    "an id that is there": ({"id": "c1", "messages": GOOD}, "its id 'train/c1' is also that of .*c1?"),
    "a label that is a list": ({"label": ["sad"], "messages": GOOD}, "label should be a text or a whole number"),
    "another split": ({"split": "held out", "messages": GOOD}, "split 'held out' is none of"),
    "a split that is a number": ({"split": 3, "messages": GOOD}, "split '?3'? is none of"),
    "another quality": ({"quality": "fair", "messages": GOOD}, "quality 'fair' is none of high, low"),
    "an act that is a number": (
        with_turn({"role": "user", "content": "Hi.", "act": 3}),
        "turn 3: act should be a text",
    ),
}
# What a dialogue may hold, and what is read of its turns.
READ = {
    "100,000 characters": (with_turn({"role": "user", "content": "word " * 20_000}), 3),
    "the assistant first": ({"messages": GOOD[::-1]}, 2),
    "one role alone": ({"messages": [GOOD[0], GOOD[0]]}, 1),
    "two system turns": ({"messages": [{"role": "system", "content": "Be kind."}] * 2 + GOOD}, 3),
    "an emoji of many parts": ({"messages": [{**GOOD[0], "content": "👩🏽‍🦱 שלום"}, GOOD[1]]}, 2),
    "columns that are not read": ({"messages": GOOD, "tools": None, "score": 0.5, "lang": ["en"]}, 2),
    "parts of text": (with_turn({"role": "user", "content": [{"type": "text", "text": "Hi."}] * 2}), 3),
}
OTHERS = [{"id": f"c{i}", "messages": [{**GOOD[0], "content": f"Day {i}."}, GOOD[1]]} for i in range(3)]


def jsonl(records: list[dict]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in records).encode()


def field(value, key: str) -> str:
    """A value in a csv: as JSON, but a text outside of a list of turns as it is."""
    return value if isinstance(value, str) and (key != "messages" or not value) else json.dumps(value)


def listed(records: list[dict]) -> bytes:
    """A csv whose columns messages and conversations are JSON."""
    header = list(dict.fromkeys(key for one in records for key in one))
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(header)
    writer.writerows([field(one.get(key, ""), key) for key in header] for one in records)
    return stream.getvalue().encode()


def parquet(records: list[dict]) -> bytes | None:
    """Parquet, whose columns have one type each; None for records that have none."""
    try:
        table = pa.Table.from_pylist(records, schema=pa.Table.from_pylist(records[-1:] + records[:-1]).schema)
        pq.write_table(table, sink := io.BytesIO())
    except (pa.ArrowException, UnicodeEncodeError, TypeError):
        return None
    return sink.getvalue()


KINDS = {
    "jsonl": jsonl,
    "json": lambda records: json.dumps(records).encode(),
    "csv": listed,
    "csv.gz": lambda records: gzip.compress(listed(records)),
    "parquet": parquet,
}
# What a csv cannot hold: fields are texts, and an empty one is none; no field holds more than 131,072 characters.
NOT_IN_CSV = {"an empty id", "an id that is a fraction", "an id that is a list", "a label that is a list"}


def outcome(folder: Path, file: str, content: bytes) -> tuple[list, str | None]:
    """The dialogues that are read, or the error; any other exception fails the test itself."""
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(content)
    shares = replace(USUAL.shares, train=10**9, valid=1, test=1)
    try:
        return list(stream(folder, {}, messages=replace(USUAL, shares=shares))), None
    except DataError as error:
        return [], str(error)


ROWS = []


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_dialogue_is_named_by_file_and_line(kind, tmp_path):
    file, failures, counted = f"chats.{kind}", {}, 0
    for what, (record, message) in BROKEN.items():
        content = None if kind.startswith("csv") and what in NOT_IN_CSV else KINDS[kind]([*OTHERS, record])
        if content is None:
            continue
        counted += 1
        _, error = outcome(tmp_path / "a", file, content)
        place = "(:\\d+|, row 4)"
        if error is None or not re.search(f"{re.escape(file)}{place}.*{message}", error) or len(error) > 1000:
            failures[what] = error
    ROWS.append({"what": f"broken dialogues, {kind}", "cases": counted, "failures": len(failures)})
    assert failures == {} and counted > (20 if kind == "parquet" else 30)


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_dialogue_is_read(kind, tmp_path):
    for what, (record, turns) in READ.items():
        content = KINDS[kind]([*OTHERS, record])
        if content is not None:
            found, error = outcome(tmp_path / "a", f"chats.{kind}", content)
            assert error is None and [len(one.turns) for one in found] == [2, 2, 2, turns], what


def damaged(content: bytes) -> dict[str, bytes]:
    """A whole file, damaged."""
    size = len(content)
    cuts = {f"cut after {part} eighths": content[: size * part // 8] for part in range(1, 8)}
    turned = {
        f"byte {at} turned": content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]
        for at in range(0, size, size // 12)
    }
    return cuts | turned | {"a picture": b"\x89PNG\r\n\x1a\n" + content, "NULs": bytes(size)}


@pytest.mark.parametrize("kind", ["parquet", "csv.gz"])
def test_a_damaged_binary_file_is_named(kind, tmp_path):
    content, failures = KINDS[kind](OTHERS), {}
    valid, _ = outcome(tmp_path / "a", f"chats.{kind}", content)
    cases = {**damaged(content), "empty": b"", "text": b"Hi.\n", "jsonl": jsonl(OTHERS)}
    for what, changed in cases.items():
        found, error = outcome(tmp_path / "a", f"chats.{kind}", changed)
        # A turned byte may lie where nothing is read of it.
        if found != valid and (error is None or f"chats.{kind}" not in error):
            failures[what] = error or found
    ROWS.append({"what": f"damaged {kind}", "cases": len(cases), "failures": len(failures)})
    assert failures == {}


def test_many_broken_dialogues_are_counted_and_the_first_listed(tmp_path):
    _, error = outcome(tmp_path, "chats.jsonl", jsonl([*OTHERS, *[{"messages": []}] * 30]))
    listed = error.split("\n")
    assert len(listed) == 21 and listed[-1] == "… and 10 more bad dialogues"
    assert [int(re.search(r"jsonl:(\d+)", line)[1]) for line in listed[:-1]] == list(range(4, 24))


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "holds no file of chats: put .jsonl, .json, .parquet, .csv, .csv.gz files there"),
        ({"LICENCE": b"CC0 1.0\n", "readme.md": b"# Hi\n"}, "holds no file of chats"),
        ({"chats.xlsx": b"PK"}, r"chats\.xlsx: a file of chats is one of"),
        ({"chats.jsonl": jsonl(OTHERS), "chats.pkl": b"\x80"}, r"chats\.pkl: a file of chats is one of"),
        ({"chats.csv": b"a,b\n1,2\n"}, r"chats\.csv:1: found the columns a, b: a csv of chats has"),
        (
            {"chats.csv": b"id,role,content\nx,user,a\ny,user,b\nx,user,c\n"},
            r"chats\.csv:4: the rows of id 'x' are not",
        ),
        (
            {"chats.csv": b"id,label,role,content\nx,a,user,a\nx,b,user,b\n"},
            r"chats\.csv:3: label 'b', but 'a' in line 2",
        ),
        ({"chats.csv": b"id,role,content\nx,user\n"}, r"chats\.csv:2: 2 fields, but the header has 3: 'x'"),
        ({"chats.csv": b"id,role,role\nx,user,a\n"}, r"chats\.csv:1: column role is there twice"),
        ({"chats.json": b'{"messages": []}'}, r"chats\.json: {'messages': \[\]} is no list of objects"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(stream(tmp_path, {}))


def test_the_counts_are_kept(recorded):
    assert sum(row["cases"] for row in ROWS) >= 150 or len(ROWS) < len(KINDS) + 2
    recorded("inputs", ROWS)
