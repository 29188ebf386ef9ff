"""Rule file: TRL's formats, broken files, held-out pairs, epochs, the hub's cache, and the way back by export."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import factory
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT, project

from attune.config.params import compose, load
from attune.data.dialogue import Example, Turn
from attune.data.pair import Pair
from attune.pairs.build import file
from attune.pairs.file import is_held_out, read_preferences
from attune.pairs.held_out import held_out, held_out_pairs
from attune.pairs.metrics import write_pairs
from attune.runtime.errors import DataError, ParamsError, UserError
from attune.tools.export import main as export
from stages.pairs import main as stage

EXAMPLES = ROOT / "examples/pairs"
USER, GOOD, BAD = "I lost my dog.", "I am sorry!", "So what?"
TEXT = {"prompt": USER, "chosen": GOOD, "rejected": BAD}


def user(text=USER):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


MESSAGES = {"prompt": [user()], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(*rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue().to_pybytes()


def settings(path, rule="file", held_out=0.0, **changes):
    return factory.pairs(rule=rule, table=str(path), file=factory.pair_file(held_out=held_out), **changes)


def read(folder, content, name="my.jsonl", **changes):
    (folder / name).write_bytes(content)
    return read_preferences(settings(folder / name, **changes))


def read_one(folder, row):
    [pair] = read(folder, jsonl(row)).train
    return pair.prompt, pair.chosen, pair.rejected


USUAL = (Turn("user", USER),)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (TEXT, USUAL),
        (MESSAGES, USUAL),
        ({"chosen": f"{USER} {GOOD}", "rejected": f"{USER} {BAD}"}, USUAL),
        ({"chosen": [user(), assistant(GOOD)], "rejected": [user(), assistant(BAD)]}, USUAL),
        # As HuggingFaceH4/ultrafeedback_binarized: a column repeats the prompt.
        ({"prompt": USER, "chosen": [user(), assistant(GOOD)], "rejected": [user(), assistant(BAD)]}, USUAL),
        ({"prompt": USER, "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}, USUAL),
        ({"prompt": [user()], "chosen": GOOD, "rejected": BAD}, USUAL),
        # White space around texts, other columns, null for an optional one, any order.
        ({"rejected": f" {BAD}\n", "score": 0.5, "chosen": GOOD, "label": None, "prompt": f"{USER}\n\n"}, USUAL),
        (
            MESSAGES | {"prompt": [user("Hi."), assistant("Hello."), user()]},
            (Turn("user", "Hi."), Turn("assistant", "Hello."), Turn("user", USER)),
        ),
        # Two messages of one role are one turn, and system messages are one before the others.
        (
            MESSAGES | {"prompt": [system("Be kind."), user("Hi."), system("Be short."), user()]},
            (Turn("system", "Be kind.\n\nBe short."), Turn("user", f"Hi. {USER}")),
        ),
        # As ShareGPT, and a content in parts.
        (
            {
                side: [{"from": "human", "value": USER}, {"from": "gpt", "value": text}]
                for side, text in (("chosen", GOOD), ("rejected", BAD))
            },
            USUAL,
        ),
        (MESSAGES | {"prompt": [user([{"type": "text", "text": USER}])]}, USUAL),
        # An opening turn of the assistant is left out.
        (MESSAGES | {"prompt": [assistant("Welcome!"), user()]}, USUAL),
        (
            MESSAGES | {"prompt": [system("Be kind."), assistant("Welcome!"), user()]},
            (Turn("system", "Be kind."), *USUAL),
        ),
    ],
)
def test_every_format_gives_the_same_pair(row, prompt, tmp_path):
    assert read_one(tmp_path, row) == (prompt, GOOD, BAD)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("I am glad", "I am great", "I am"),
        ("The sky is", "The sky is blue", "The sky"),
        ("Hi.\nI am well", "Hi.\nI was well", "Hi.\nI"),
    ],
)
def test_a_common_beginning_ends_at_a_word(chosen, rejected, prompt, tmp_path):
    turns, *replies = read_one(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert turns == (Turn("user", prompt),)
    assert [f"{prompt} {reply}".split() for reply in replies] == [chosen.split(), rejected.split()]


def test_containers_hold_the_same_pairs(tmp_path):
    rows = [MESSAGES | {"id": str(i), "chosen": [assistant(f"{GOOD} {i}")]} for i in range(5)]
    lines = read(tmp_path, b"\xef\xbb\xbf" + jsonl(*rows).replace(b"\n", b"\r\n\r\n"))
    listed = read(tmp_path, json.dumps(rows).encode(), "my.json")
    table = read(tmp_path, parquet(*rows), "my.parquet")
    assert lines == listed == table and len(lines.train) == 5


@pytest.mark.parametrize("name", ["text", "text-implicit", "messages", "messages-implicit"])
def test_examples_are_six_pairs(name):
    read = read_preferences(settings(EXAMPLES / f"{name}.jsonl"))
    plain = read_preferences(settings(EXAMPLES / "text.jsonl"))
    assert [(p.chosen, p.rejected, p.prompt[-1]) for p in read.train] == [
        (p.chosen, p.rejected, p.prompt[-1]) for p in plain.train
    ]
    assert len(read.train) == 6 and read.left_out.total() == 0 and not read.held_out


def test_examples_with_epochs_and_parts():
    epochs = read_preferences(settings(EXAMPLES / "epochs.json"))
    first, second = (epochs.of_epoch(n, None, 13) for n in (1, 2))
    assert epochs.epochs == [1, 2, 3] and len(first) == len(second) == 6
    assert all(a.chosen == b.chosen and a.rejected != b.rejected for a, b in zip(first, second, strict=True))
    parts = read_preferences(settings(EXAMPLES / "parts", held_out=0.5))
    assert (len(parts.train), len(parts.held_out)) == (4, 2)


MESSAGE_2 = [user(), {"role": "user"}]
# A file's name and content, and the error after its path.
BROKEN = {
    "no JSON": ("a.jsonl", b"{", ":1: no valid JSON: Expecting property name enclosed in double quotes"),
    "second line": ("a.jsonl", jsonl(TEXT) + b"{}x\n", ":2: no valid JSON: Extra data"),
    "two objects": ("a.jsonl", jsonl(TEXT).strip() + jsonl(TEXT), ":1: no valid JSON: Extra data"),
    "list a line": ("a.jsonl", b"[1]\n", ":1: [1] is no JSON object, {column: value, …}"),
    "text a line": ("a.jsonl", b'"hi"\n', ":1: 'hi' is no JSON object"),
    "null a line": ("a.jsonl", b"null\n", ":1: null is no JSON object"),
    "number": ("a.jsonl", b"9" * 5000, ":1: no valid JSON: Exceeds the limit"),
    "depth": ("a.jsonl", b"[" * 100_000, ":1: no valid JSON: maximum recursion depth"),
    "latin-1": ("a.jsonl", b'{"prompt": "caf\xe9"}', ":1: not UTF-8 at byte 15: save it as UTF-8"),
    "utf-16": ("a.jsonl", '{"prompt"'.encode("utf-16-le"), ":1: a NUL at byte 1"),
    "surrogate": ("a.jsonl", jsonl(TEXT | {"chosen": "\ud83d"}), ":1: half of a surrogate pair, which no"),
    "surrogate in prompt": ("a.jsonl", jsonl(TEXT | {"prompt": "\ude00"}), ":1: half of a surrogate pair"),
    "lines in a list": ("a.json", jsonl(TEXT, TEXT), ":2: no valid JSON: Extra data at character 1; with an"),
    "object, no list": ("a.json", jsonl(TEXT), ": {'prompt': 'I lost my dog.', 'chosen'"),
    "list of texts": ("a.json", b'[{"chosen": "a", "rejected": "a b", "prompt": "c"}, "b"]', ", row 2: 'b' is no"),
    "empty json": ("a.json", b"", ": no valid JSON: Expecting value"),
    "no parquet": ("a.parquet", jsonl(TEXT), " is no valid parquet file after row 0: Parquet magic bytes not found"),
    "empty parquet": ("a.parquet", b"", " is no valid parquet file after row 0: Parquet file size is 0 bytes"),
    "half a parquet": ("a.parquet", parquet(TEXT)[:200], " is no valid parquet file after row 0: "),
    "csv": ("a.csv", b"prompt,chosen,rejected\n", ": the ending is none of .jsonl, .json, .parquet, which"),
    "pickle": ("a.pkl", b"\x80\x04.", ": the ending is none of .jsonl, .json, .parquet"),
    "no chosen": ("a.jsonl", jsonl({"prompt": USER, "rejected": BAD}), ":1: no chosen; found prompt, rejected"),
    "no rejected": ("a.jsonl", jsonl({"prompt": USER, "chosen": BAD}), ":1: no rejected; found prompt, chosen"),
    "no column": ("a.jsonl", b"{}\n", ":1: no chosen; found nothing"),
    "null chosen": ("a.jsonl", jsonl(TEXT | {"chosen": None}), ":1: no chosen; found prompt, chosen, rejected"),
    "other columns": ("a.parquet", parquet({"text": "a"}), ", row 1: no chosen; found text"),
    "null in parquet": ("a.parquet", parquet(TEXT, TEXT | {"rejected": None}), ", row 2: no rejected"),
    "number as reply": ("a.jsonl", jsonl(TEXT | {"chosen": 3}), ":1: chosen is 3: prompt, chosen and rejected are all"),
    "numbers": ("a.parquet", parquet({"prompt": 1, "chosen": 2, "rejected": 3}), ", row 1: chosen is 2: prompt"),
    "bytes": ("a.parquet", parquet(TEXT | {"chosen": b"a"}), ", row 1: chosen is b'a': prompt, chosen"),
    "object as reply": ("a.jsonl", jsonl(TEXT | {"chosen": assistant(GOOD)}), ":1: chosen is {'role': 'assistant'"),
    "text and messages": ("a.jsonl", jsonl(MESSAGES | {"chosen": GOOD}), ":1: chosen is 'I am sorry!': prompt"),
    "messages and text": ("a.jsonl", jsonl(MESSAGES | {"rejected": BAD}), ":1: rejected is 'So what?': prompt"),
    "number as prompt": ("a.jsonl", jsonl(TEXT | {"prompt": 3}), ":1: prompt is 3: prompt, chosen"),
    "no beginning": ("a.jsonl", jsonl({"chosen": GOOD, "rejected": BAD}), ":1: no prompt, and chosen and"),
    "half a word": ("a.jsonl", jsonl({"chosen": "glad", "rejected": "great"}), ":1: no prompt, and chosen and"),
    "no common message": (
        "a.jsonl", jsonl({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]}),
        ":1: the prompt is empty: the last message before the reply is the user's",
    ),
    "longer side": (
        "a.jsonl",
        jsonl({"chosen": [user(), assistant(GOOD)], "rejected": [user(), assistant(BAD), user(), assistant(BAD)]}),
        ":1: rejected has 3 messages after the prompt: a reply is one message of the assistant",
    ),
    "early difference": (
        "a.jsonl",
        jsonl({side: [user(), assistant(side), user("Hm."), assistant(side)] for side in ("chosen", "rejected")}),
        ":1: chosen has 3 messages after the prompt",
    ),
    "user replies": (
        "a.jsonl", jsonl({"chosen": [user("a"), assistant("b"), user("c")], "rejected": [user("a"), assistant("d")]}),
        ":1: chosen has 2 messages after the prompt",
    ),
    "user's reply": ("a.jsonl", jsonl(MESSAGES | {"chosen": [user()]}), ":1: chosen is a message of the user: a reply"),
    "system's reply": ("a.jsonl", jsonl(MESSAGES | {"rejected": [system("x")]}), ":1: rejected is a message of"),
    "prompt in reply": (
        "a.jsonl", jsonl(MESSAGES | {"chosen": [user(), assistant(GOOD)]}), ":1: chosen has 2 messages after",
    ),
    "prompt of assistant": (
        "a.jsonl", jsonl(MESSAGES | {"prompt": [user(), assistant("a")]}),
        ":1: the prompt ends with a message of the assistant: the last message before the reply is the user's",
    ),
    "prompt of system": ("a.jsonl", jsonl(MESSAGES | {"prompt": [system("a")]}), ":1: the prompt ends with"),
    "no message": ("a.jsonl", jsonl(MESSAGES | {"prompt": []}), ":1: prompt holds no message"),
    "no reply": ("a.jsonl", jsonl(MESSAGES | {"chosen": []}), ":1: chosen holds no message"),
    "text as message": ("a.jsonl", jsonl(MESSAGES | {"prompt": [USER]}), ":1: message 1 of prompt: expected an object"),
    "no content": ("a.jsonl", jsonl(MESSAGES | {"prompt": MESSAGE_2}), ":1: message 2 of prompt: no key content"),
    "no role": ("a.jsonl", jsonl(MESSAGES | {"chosen": [{"content": "a"}]}), ":1: message 1 of chosen: no key role"),
    "unknown role": (
        "a.jsonl", jsonl(MESSAGES | {"prompt": [{"role": "narrator", "content": "a"}]}),
        ":1: message 1 of prompt: role 'narrator' is none of system, user, human, assistant",
    ),
    "tool": (
        "a.jsonl", jsonl(MESSAGES | {"prompt": [{"role": "tool", "content": "a"}]}),
        ":1: message 1 of prompt: role 'tool' is none of",
    ),
    "null role": (
        "a.parquet", parquet(MESSAGES | {"prompt": [{"role": None, "content": "a"}]}),
        ", row 1: message 1 of prompt: role null is none of",
    ),
    "an image": (
        "a.jsonl", jsonl(MESSAGES | {"prompt": [user([{"type": "image", "url": "a"}])]}),
        ":1: message 1 of prompt: a part of the content is 'image': only parts of type text can be read",
    ),
    "null content": ("a.jsonl", jsonl(MESSAGES | {"chosen": [assistant(None)]}), ":1: message 1 of chosen: the text"),
    "id twice": (
        "a.jsonl", jsonl(TEXT | {"id": 1}, TEXT | {"id": "1"}), ":2: id '1' is also that of {path}:1: ids are unique",
    ),
    "list as id": ("a.jsonl", jsonl(TEXT | {"id": [1]}), ":1: id should be a text or a whole number, found [1]"),
    "true as id": ("a.jsonl", jsonl(TEXT | {"id": True}), ":1: id should be a text or a whole number, found True"),
    "number as label": ("a.jsonl", jsonl(TEXT | {"label": 3}), ":1: label should be a text, found 3"),
    "epoch 0": ("a.jsonl", jsonl(TEXT | {"epoch": 0}), ":1: epoch is 0, no integer from 1"),
    "epoch as text": ("a.jsonl", jsonl(TEXT | {"epoch": "1"}), ":1: epoch is '1', no integer from 1"),
    "epoch 1.5": ("a.jsonl", jsonl(TEXT | {"epoch": 1.5}), ":1: epoch is 1.5, no integer from 1"),
    "null epoch": ("a.parquet", parquet(TEXT | {"epoch": 1}, TEXT | {"epoch": None}), ", row 2: epoch is null"),
    "some epochs": ("a.jsonl", jsonl(TEXT | {"epoch": 1}, TEXT), ":2: a column epoch in some rows only: give all rows"),
    "large epoch": ("a.jsonl", jsonl(TEXT | {"epoch": 2**31}), ":1: epoch is 2147483648, no integer from 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file(case, tmp_path):
    name, content, message = BROKEN[case]
    path = tmp_path / name
    with pytest.raises(DataError) as error:
        read(tmp_path, content, name)
    assert str(error.value).startswith(f"{path}{message.replace('{path}', str(path))}")
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(path)) * 2 + 200


def test_missing_files(tmp_path):
    for name in ("my.jsonl", "my.json", "my.parquet"):
        with pytest.raises(DataError, match=rf"{name} is missing: pairs\.table names the preference pairs"):
            list(read_preferences(settings(tmp_path / name)).train)
    with pytest.raises(DataError, match=r"holds no train\.jsonl, train\.json or train\.parquet"):
        read_preferences(settings(tmp_path))
    for name in ("train.jsonl", "train.json"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"holds train\.jsonl and train\.json: keep one of them"):
        read_preferences(settings(tmp_path))


ODD = [
    TEXT,
    TEXT | {"rejected": f" {GOOD.replace(' ', chr(160))} "},
    TEXT | {"chosen": " "},
    MESSAGES | {"prompt": [user(""), assistant("a"), user()]},
    {"chosen": [user(), assistant(GOOD)], "rejected": [user(), assistant(GOOD)]},
    {"chosen": f"{USER} {GOOD}", "rejected": f"{USER} {GOOD}"},
    MESSAGES | {"prompt": [assistant("Welcome!"), user()]},
    TEXT | {"chosen": "👍", "rejected": "👎"},
    TEXT | {"chosen": "Yes.", "rejected": "yes"},
    TEXT | {"prompt": "word " * 20_000, "chosen": "<|im_end|>\n\ue000", "rejected": "{{ x }}"},
]


def test_unusable_rows_are_counted_and_said(tmp_path, capsys):
    found = read(tmp_path, jsonl(*ODD))
    assert found.left_out == Counter(equal=3, empty=2, opening_turn=1, held_out=0) and len(found.train) == 5
    params = factory.params(pairs=settings(tmp_path / "my.jsonl"))
    pairs, metrics = file(params, 1)
    assert (metrics["pairs"], metrics["dropped"], metrics["left_out_equal"]) == (5, 50, 3)
    assert "5 pairs to train on; left out: 3 equal, 2 empty, 1 opening_turn, 0 held_out" in capsys.readouterr().err
    write_pairs(pairs, tmp_path / "e1.parquet")
    assert {row["chosen"] for row in pq.read_table(tmp_path / "e1.parquet").to_pylist()} >= {"👍", "Yes."}


def many(count, prompts=None, **columns):
    return [
        TEXT | {"prompt": f"Story {i % (prompts or count)}.", "chosen": f"{GOOD} {i}", "id": f"{i:04}"} | columns
        for i in range(count)
    ]


def test_a_share_of_the_prompts_is_held_out(tmp_path):
    rows = many(3000, prompts=1000)
    found = read(tmp_path, jsonl(*rows), held_out=0.1)
    sides = [{pair.prompt for pair in pairs} for pairs in (found.train, found.held_out)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 1000
    # 100 of 1000 prompts, with a standard deviation of 9.5.
    assert len(sides[1]) == pytest.approx(100, abs=40)
    assert found.left_out["held_out"] == len(found.held_out) == 3 * len(sides[1])
    part = read(tmp_path, jsonl(*rows[:1500][::-1]), held_out=0.1)
    assert {pair.id for pair in part.held_out} == {pair.id for pair in found.held_out if pair.id < "1500"}
    greater = read(tmp_path, jsonl(*rows), held_out=0.2)
    assert {pair.id for pair in greater.held_out} > {pair.id for pair in found.held_out}
    assert not any(is_held_out(pair, 0.0) for pair in found.train)


def test_no_prompt_of_the_part_test_is_trained_on(tmp_path):
    rows = many(20)
    (tmp_path / "train.jsonl").write_bytes(jsonl(*rows))
    test = [row | {"prompt": row["prompt"].upper()} for row in rows[15:]]
    (tmp_path / "test.parquet").write_bytes(parquet(*test, test[0] | {"id": "equal", "chosen": BAD}))
    found = read_preferences(settings(tmp_path, held_out=0.9))
    assert [pair.id for pair in found.train] == [row["id"] for row in rows[:15]]
    assert len(found.held_out) == 5 and found.left_out == Counter(held_out=5, of_test=1)


def test_held_out_pairs_stand_beside_test_examples(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(jsonl(TEXT))
    (tmp_path / "test.jsonl").write_bytes(jsonl(*many(3)))
    params = factory.params(pairs=settings(tmp_path))
    examples = [Example(f"test/{i}", "sad", (Turn("user", f"Hm. {i}"),), "I see.") for i in range(5)]
    rows = held_out(examples, lambda part: held_out_pairs(part, examples, params), None, 13)
    assert [pair is not None for _, pair in rows] == [True] * 3 + [False] * 2
    pairs = [pair for _, pair in rows if pair]
    assert {(pair.prompt[0].text, pair.chosen) for pair in pairs} == {(f"Story {i}.", f"{GOOD} {i}") for i in range(3)}
    # Fewer examples than pairs.
    assert len(held_out_pairs(examples[:2], examples, params)) == 2


def test_one_set_or_a_set_for_each_epoch(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_bytes(jsonl(*many(8)))
    params = factory.params(pairs=settings(path), dpo=factory.dpo(epochs=3))
    first, second = (file(params, n) for n in (1, 2))
    assert [replace(pair, epoch=2) for pair in first[0]] == second[0] and {pair.epoch for pair in first[0]} == {1}
    assert [metrics["repeated_rejected"] for _, metrics in (first, second)] == [0, 100]
    assert not first[0][0].future_rejected
    rows = [row | {"epoch": n, "rejected": f"{BAD} {n}"} for n in (1, 2) for row in many(8)]
    path.write_bytes(jsonl(*rows))
    pairs, _ = file(params, 1)
    assert {(pair.rejected, pair.future_rejected) for pair in pairs} == {(f"{BAD} 1", (f"{BAD} 2",))}
    pairs, metrics = file(params, 2)
    assert {pair.rejected for pair in pairs} == {f"{BAD} 2"} and metrics["repeated_rejected"] == 0
    with pytest.raises(
        DataError, match=r"my\.jsonl has no pair to train on in epoch 3; its column epoch has 1, 2 \(left"
    ):
        file(params, 3)
    few = replace(params, pairs=replace(params.pairs, limit=3))
    ids = [[pair.id for pair in file(few, n)[0]] for n in (1, 2)]
    assert ids[0] == ids[1] == sorted(ids[0]) and len(ids[0]) == 3


@pytest.mark.parametrize("content", [b"", b"\n\n", jsonl(TEXT | {"chosen": BAD})])
def test_a_file_without_a_usable_pair_is_an_error(content, tmp_path):
    (tmp_path / "my.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"has no pair to train on in epoch 1 \(left out: "):
        file(factory.params(pairs=settings(tmp_path / "my.jsonl")), 1)


PAIRS = [
    Pair(f"train/{i}:1", 1, (Turn("user", f"Ä {i}\n"), Turn("assistant", "Hm."), Turn("user", "“Yes”")), f"good {i}",
         f"bad {i}", "sad", "joyful", f"train/{9 - i}:1", future_rejected=("x", "y"))
    for i in range(5)
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A project with the pairs of two rounds, and its params."""
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    compose(["model=tiny"])
    pairs = [
        replace(pair, prompt=tuple(replace(turn, text=turn.text.strip()) for turn in pair.prompt)) for pair in PAIRS
    ]
    write_pairs(pairs, Path("data/pairs/e1.parquet"))
    write_pairs(
        [replace(p, epoch=2, rejected="worse", future_rejected=()) for p in pairs], Path("data/pairs/e2.parquet")
    )
    return load()


def test_exported_pairs_are_read_back(run):
    own = replace(run, pairs=settings("all.jsonl"))
    before = [pq.read_table(f"data/pairs/{key}.parquet").to_pylist() for key in ("e1", "e2")]
    export(["pairs", "e1", "e2", "-o", "all.jsonl"])
    for key, rows in zip(("e1", "e2"), before, strict=True):
        stage(key, own)
        again = pq.read_table(f"data/pairs/{key}.parquet").to_pylist()
        assert [row | {"future_rejected": []} for row in again] == [row | {"future_rejected": []} for row in rows]
    export(["pairs", "e1", "-o", "one.jsonl"])
    assert "epoch" not in json.loads(Path("one.jsonl").read_text(encoding="utf-8").splitlines()[0])
    stage("e3", replace(run, pairs=settings("one.jsonl")))
    again = pq.read_table("data/pairs/e3.parquet").to_pylist()
    assert [row["rejected"] for row in again] == [pair.rejected for pair in PAIRS]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["e3", "-o", "a.jsonl"], "data/pairs/e3.parquet is missing: run `dvc repro pairs@e3`"),
        (["e9", "-o", "a.jsonl"], "'e9' is none of rounds: e1, e2, e3"),
        (["e1", "e1", "-o", "a.jsonl"], "rounds e1 and e1 are both of epoch 1: export them to two files"),
        (["e1", "-o", "a.csv"], "a.csv has another ending than .jsonl"),
    ],
)
def test_what_cannot_be_exported(arguments, error, run):
    with pytest.raises(UserError, match=re.escape(error)):
        export(["pairs", *arguments])
    assert not list(Path().glob("*a.*"))


def overrides(*more):
    return ["model=tiny", "pairs.rule=file", *more]


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ([], "pairs.table = 'data/opposite_emotions.csv', but pairs.rule = 'file' reads a .jsonl, .json or .parquet"),
        (
            ["pairs.file.hub_id=me/one"],
            "pairs.file.revision = None, but a branch or tag may move to other pairs: name a",
        ),
        (["pairs.file.hub_id=me/one", "pairs.file.revision=main"], "pairs.file.revision = 'main', but a branch or tag"),
        (["pairs.table=a.jsonl", "pairs.file.held_out=1.0"], "pairs.file.held_out = 1.0: input should be less than 1"),
        (["pairs.table=a.jsonl", "rounds.e1.candidates=models/sft"], "pairs.rule = 'file' takes 'data/dialogues'"),
    ],
)
def test_params_that_do_not_go_with_a_file(more, error, run):
    with pytest.raises(ParamsError, match=re.escape(error)):
        compose(overrides(*more))


def test_the_file_is_a_dependency_of_the_stages_that_read_it(run):
    from dvc.repo import Repo

    compose(overrides("pairs.table=mine/my.jsonl"))
    with Repo() as repo:
        deps = {stage.addressing: {str(dep) for dep in stage.deps} for stage in repo.index.stages}
    readers = {name for name, paths in deps.items() if "mine/my.jsonl" in paths}
    pairs, replies = (
        {f"{stage}@{key}" for key in keys} for stage, keys in (("pairs", run.rounds), ("generate", run.variants))
    )
    assert readers == {"prepare"} | pairs | replies
