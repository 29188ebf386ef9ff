"""Reader `messages`: chats in the forms of chat APIs, ShareGPT and this pipeline, in every kind of file."""

import csv
import gzip
import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import factory
import pandas as pd
import pytest
from helpers import ROOT
from ruamel.yaml import YAML

from attune.corpora.readers.messages import USUAL, read
from attune.data.dialogue import SPLITS, Dialogue, Turn, write_dialogues
from attune.runtime.errors import DataError
from stages.prepare import main

TALK = [("user", "I lost my job, today."), ("assistant", "Oh no!\nWhat happened?"), ("user", "They closed."),
        ("assistant", "I am sorry.")]  # fmt: skip
TURNS = tuple(Turn(role, text) for role, text in TALK)
MESSAGES = [{"role": role, "content": text} for role, text in TALK]
SHARE_GPT = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TALK]


def rows(number: int = 40) -> list[dict]:
    """Chats whose words differ."""
    return [
        {
            "id": f"c{i}",
            "label": ["sad", "joyful"][i % 2],
            "messages": [{**MESSAGES[0], "content": f"Day {i}."}, *MESSAGES[1:]],
        }
        for i in range(number)
    ]


def jsonl(records) -> bytes:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records).encode()


def table(header, some) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([header, *some])
    return stream.getvalue().encode()


def put(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def one(folder: Path, record: dict, **settings) -> Dialogue:
    (found,), _ = read(put(folder, train__jsonl=jsonl([record])), messages=replace(USUAL, shares=ALL, **settings))
    return found


# With one share, no dialogue leaves the train split.
ALL = replace(USUAL.shares, train=10**9, valid=1, test=1)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": MESSAGES},
        {"conversations": SHARE_GPT},
        {"conversation": MESSAGES},
        {"turns": [{"role": role, "text": text, "act": None} for role, text in TALK]},
        {"messages": [{"role": role.upper(), "content": [{"type": "text", "text": text}]} for role, text in TALK]},
    ],
    ids=["messages", "ShareGPT", "conversation", "turns", "parts"],
)
def test_every_form_gives_the_same_turns(record, tmp_path):
    assert one(tmp_path, {"id": 7, **record}) == Dialogue("train/7", "messages", "train", "", TURNS)


def test_columns_and_keys_have_the_names_of_the_params(tmp_path):
    talk = [{"who": role, "said": text} for role, text in TALK]
    record = {"key": "a", "topic": "work", "chat": talk, "messages": "not read"}
    found = one(tmp_path, record, turns="chat", role="who", content="said", id="key", label="topic")
    assert found == Dialogue("train/a", "messages", "train", "work", TURNS)


def kinds(folder: Path) -> dict[str, Path]:
    """The same chats as files of every kind, in a folder each."""
    chats = rows()
    by_turn = [(c["id"], c["label"], m["role"], m["content"]) for c in chats for m in c["messages"]]
    listed = table(["id", "label", "messages"], [(c["id"], c["label"], json.dumps(c["messages"])) for c in chats])
    contents = {
        "jsonl": jsonl(chats),
        "json": json.dumps(chats).encode(),
        "csv": listed,
        "turns.csv": table(["id", "label", "role", "content"], by_turn),
        "csv.gz": gzip.compress(listed),
    }
    folders = {kind: put(folder / kind, **{f"chats.{kind}": content}) for kind, content in contents.items()}
    folders["parquet"] = put(folder / "parquet")
    pd.DataFrame(chats).to_parquet(folders["parquet"] / "chats.parquet")
    return folders


def test_every_kind_of_file_gives_the_same_dialogues(tmp_path, capsys):
    found = {kind: read(folder) for kind, folder in kinds(tmp_path).items()}
    dialogues = found["jsonl"][0]
    assert all(result == found["jsonl"] for result in found.values())
    assert len(dialogues) == 40 and {d.label for d in dialogues} == {"sad", "joyful"}
    counts = Counter(d.split for d in dialogues)
    assert min(counts[split] for split in SPLITS) > 0 and counts["train"] > 20
    assert (
        "splits are cut by a hash of the id, or of the words without an id (train 70, valid 15, test 15)"
        in capsys.readouterr().err
    )


def test_a_split_by_hash_does_not_move_when_rows_come_and_go(tmp_path):
    splits = {d.id.partition("/")[2]: d.split for d in read(put(tmp_path / "a", c__jsonl=jsonl(rows())))[0]}
    some = {d.id.partition("/")[2]: d.split for d in read(put(tmp_path / "b", c__jsonl=jsonl(rows(90)[:9:-1])))[0]}
    assert {name: some[name] for name in splits if name in some} == {n: s for n, s in splits.items() if n in some}
    # Without ids, equal words are in one split.
    chats = [{"messages": one["messages"]} for one in rows()]
    first, again = (
        read(put(tmp_path / name, c__jsonl=jsonl(chats[::step])))[0] for name, step in (("c", 1), ("d", -1))
    )
    assert {d.turns: d.split for d in first} == {d.turns: d.split for d in again}
    assert first[0].id.endswith("/c.jsonl:1")


def test_splits_of_files_and_columns(tmp_path, capsys):
    named = put(
        tmp_path / "a",
        train__jsonl=jsonl(rows(3)),
        **{"validation-0.jsonl": jsonl(rows(2)), "test.jsonl": jsonl(rows(1))},
    )
    assert Counter(d.split for d in read(named)[0]) == {"train": 3, "valid": 2, "test": 1}
    assert capsys.readouterr().err == ""
    chats = [{**one, "split": "held" if i < 5 else "train"} for i, one in enumerate(rows(80))]
    dialogues, _ = read(put(tmp_path / "b", c__jsonl=jsonl(chats)), messages=replace(USUAL, splits={"held": "test"}))
    # Valid, which nobody names, is cut from train alone.
    assert {d.id for d in dialogues if d.split == "test"} == {f"test/c{i}" for i in range(5)}
    assert 0 < sum(d.split == "valid" for d in dialogues) < 40
    assert "(train 70, valid 15)" in capsys.readouterr().err
    with pytest.raises(
        DataError, match=r"c\.jsonl:1: split 'held' is none of train, valid, .*corpus\.messages\.splits"
    ):
        read(tmp_path / "b")
    with pytest.raises(DataError, match=r"more\.jsonl names no split, but 3 other files do"):
        read(put(tmp_path / "a", more__jsonl=jsonl(rows(1))))
    assert len(read(tmp_path / "a", file="more.jsonl")[0]) == 1


def test_the_pipelines_own_dialogues_come_back(tmp_path):
    greeting = Turn("user", "Hi.", "greet")
    own = [
        Dialogue(f"{s}/{n}", "messages", s, "sad", (greeting, Turn("assistant", f"{s} {n}")), "high")
        for s in SPLITS
        for n in "ab"
    ]
    for split in SPLITS:
        write_dialogues([d for d in own if d.split == split], tmp_path / f"{split}.parquet")
    assert sorted(read(tmp_path)[0], key=own.index) == own


def test_turns_of_one_role_are_joined_and_counted(tmp_path, capsys):
    talk = [MESSAGES[0], MESSAGES[2], MESSAGES[1], MESSAGES[3]]
    assert one(tmp_path, {"messages": talk}).turns == (
        Turn("user", f"{TURNS[0].text} {TURNS[2].text}"),
        Turn("assistant", f"{TURNS[1].text} {TURNS[3].text}"),
    )
    assert "2 turns are joined to the one before" in capsys.readouterr().err


def test_system_turns_are_kept_joined_or_refused(tmp_path, capsys):
    record = {"messages": [{"role": "system", "content": "Be kind."}, *MESSAGES]}
    assert one(tmp_path, record).turns == (Turn("system", "Be kind."), *TURNS)
    assert "1 system turns are kept" in capsys.readouterr().err
    joined = one(tmp_path, record, system="join").turns
    assert joined == (Turn("user", f"Be kind.\n\n{TURNS[0].text}"), *TURNS[1:])
    with pytest.raises(
        DataError, match=r"train\.jsonl:1, turn 1: a system turn, and corpus\.messages\.system = refuse"
    ):
        one(tmp_path, record, system="refuse")


def prepare(folder: Path, monkeypatch, rule="opposite_emotion", **files: bytes) -> None:
    """Stage prepare on these files."""
    monkeypatch.chdir(folder)
    put(folder / "data/raw/mine", **files)
    shutil.copy(ROOT / "data/opposite_emotions.csv", folder / "data")
    main(factory.corpus(reader="messages"), factory.pairs(rule=rule), 13)


def labelled(split: str, *labels: str) -> bytes:
    talk = [{"role": "user", "content": ""}, {"role": "assistant", "content": "Oh."}]
    return jsonl(
        {"messages": [{**talk[0], "content": f"{split} {i} {label}."}, talk[1]]} | ({"label": label} if label else {})
        for i, label in enumerate(labels)
    )


@pytest.mark.parametrize(
    "files, message",
    [
        (
            {"test": b"\n"},
            r"no dialogue is left in test: dialogues by split are train 2, valid 2, test 0; dropped are none\.",
        ),
        (
            {"train": jsonl([{"messages": MESSAGES[:1]}, {"messages": MESSAGES[1:2]}])},
            r"left in train: .* dropped are 2 train no assistant turn, 1 train opening turn\.",
        ),
        (
            {"train": labelled("train", "sad", "", "joyful")},
            r"1 of 3 train dialogues have no label, which pairs\.rule = opposite_emotion needs: give each one; without "
            r"labels there are pairs\.rule = dbt, epitome, counselling",
        ),
        ({"test": labelled("test", "sad", "joyful", "afraid")}, r"^test dialogues .* no dialogue carries the opposite"),
        ({"test": labelled("test", "sad", "joyful", "odd")}, r"^test dialogues .* no opposite in the table for .*odd"),
    ],
    ids=["empty", "dropped", "no label", "no opposite in test", "not in the table"],
)
def test_what_training_would_stumble_over_is_found_by_prepare(files, message, tmp_path, monkeypatch):
    whole = {split: labelled(split, "sad", "joyful") for split in SPLITS}
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, monkeypatch, **{f"{split}.jsonl": content for split, content in (whole | files).items()})
    assert not any((tmp_path / name).exists() for name in ("data/dialogues", "data/.prepare", "metrics"))


def test_a_rule_that_reads_no_labels_needs_none(tmp_path, monkeypatch, capsys):
    prepare(tmp_path, monkeypatch, rule="dbt", **{f"{split}.jsonl": labelled(split, "", "") for split in SPLITS})
    assert json.loads(Path("metrics/labels.json").read_text(encoding="utf-8")) == {}
    assert "train 2, valid 2, test 2 dialogues; dropped: none" in capsys.readouterr().out


def test_the_usual_names_are_those_of_conf():
    conf = YAML(typ="safe").load((ROOT / "conf/config.yaml").read_text(encoding="utf-8"))["corpus"]["messages"]
    assert conf == {**vars(USUAL), "shares": vars(USUAL.shares)}
