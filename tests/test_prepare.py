"""Stage `prepare` and the reader of EmpatheticDialogues, on files written as the originals are."""

import csv
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import factory
import pandas as pd
import pytest
from helpers import prepare

from attune.corpora.leakage import without_copies
from attune.corpora.readers.empathetic_dialogues import COLUMNS, ORIGINAL, is_quoted, read
from attune.corpora.splitting import Store, count
from attune.data.dialogue import SPLITS, Dialogue, Example, Turn, dialogue_table, read_dialogues, write_dialogues
from attune.data.examples import examples
from attune.runtime.errors import DataError
from stages.prepare import describe, label_counts, main, usable

HEADER = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags"


def row(conv, number, utterance, speaker=None, label="sad", rest=",,"):
    speaker = (number + 1) % 2 if speaker is None else speaker
    return f"{conv},{number},{label},I felt {label}_comma_ once.,{speaker},{utterance}{rest}"


def talk(conv, *utterances, **more):
    return [row(conv, i, text, **more) for i, text in enumerate(utterances, start=1)]


# A dialogue for the splits that a test does not care about; the words differ, for equal ones count as an overlap.
OTHERS = {
    "train": talk("hit:1_conv:1", "I lost my keys.", "Again?"),
    "valid": talk("hit:2_conv:2", "I found my keys.", "At last!"),
    "test": talk("hit:3_conv:3", "I sold my car.", "Why?"),
}


def corpus(folder, end="\n", encoding="utf-8", **splits):
    """Write a corpus; `splits` are lists of rows."""
    for split, rows in {**OTHERS, **splits}.items():
        (folder / f"{split}.csv").write_bytes(end.join([HEADER, *rows, ""]).encode(encoding))
    return folder


def of(dialogues, split):
    return [one for one in dialogues if one.split == split]


def test_a_dialogue(tmp_path):
    rows = talk("hit:0_conv:1", "My dog_comma_ Rex_comma_ died.", " Oh no! ", "Thanks.", "How old was he?")
    (one,) = of(read(corpus(tmp_path, train=rows))[0], "train")
    assert one == Dialogue(
        id="train/hit:0_conv:1",
        corpus="empathetic_dialogues",
        split="train",
        label="sad",
        turns=(
            Turn("user", "My dog, Rex, died."),
            Turn("assistant", "Oh no!"),
            Turn("user", "Thanks."),
            Turn("assistant", "How old was he?"),
        ),
    )


def test_turns_are_in_order_of_their_index(tmp_path):
    rows = [row("hit:0_conv:1", i, f"Turn {i}.") for i in (10, 2, 1, 9, 3, 8, 4, 7, 5, 6)]
    (one,) = of(read(corpus(tmp_path, train=rows))[0], "train")
    assert [turn.text for turn in one.turns] == [f"Turn {i}." for i in range(1, 11)]
    assert [turn.role for turn in one.turns] == ["user", "assistant"] * 5


def test_the_first_to_speak_is_the_user(tmp_path):
    rows = [row("c", 1, "Hi.", speaker=389), row("c", 2, "Hello.", speaker=17), row("c", 3, "Well.", speaker=389)]
    (one,) = of(read(corpus(tmp_path, train=rows))[0], "train")
    assert [turn.role for turn in one.turns] == ["user", "assistant", "user"]


def test_bom_line_ends_and_candidates_change_nothing(tmp_path):
    rows = talk("hit:0_conv:1", "My dog died.", "Oh no!")
    with_candidates = talk("hit:0_conv:1", "My dog died.", "Oh no!", rest=",,,Yes.|No_comma_ never.")
    assert with_candidates[0].count(",") == 8
    folders = {name: tmp_path / name for name in ("plain", "bom", "crlf", "candidates")}
    for folder in folders.values():
        folder.mkdir()
    plain = read(corpus(folders["plain"], train=rows))
    assert read(corpus(folders["bom"], encoding="utf-8-sig", train=rows)) == plain
    assert read(corpus(folders["crlf"], end="\r\n", train=rows)) == plain
    assert read(corpus(folders["candidates"], train=with_candidates)) == plain


def test_turns_of_one_role_are_joined(tmp_path):
    rows = [
        row("c", 1, "My dog died.", 1),
        row("c", 2, "Yesterday.", 1),
        row("c", 3, "Oh no!", 0),
        row("c", 4, "How?", 0),
        row("c", 5, "A car.", 1),
    ]
    (one,) = of(read(corpus(tmp_path, train=rows))[0], "train")
    assert one.turns == (
        Turn("user", "My dog died. Yesterday."),
        Turn("assistant", "Oh no! How?"),
        Turn("user", "A car."),
    )


def test_the_artefact_of_the_collection_is_dropped_and_counted(tmp_path):
    rows = [
        *talk("hit:0_conv:1", "My dog died.", "Oh no!"),
        *talk("hit:0_conv:2", "My cat died.", "Oh! hit:7_conv:9,4,sad"),
        *talk("hit:0_conv:3", "My hamster died.", "Was it hit?"),
    ]
    kept, dropped = prepare(corpus(tmp_path, train=rows), "empathetic_dialogues")
    assert [one.id for one in of(kept, "train")] == ["train/hit:0_conv:1", "train/hit:0_conv:3"]
    assert +dropped == Counter(train_collection_artefact=1)


def test_the_target_is_the_last_assistant_turn(tmp_path):
    rows = talk("c", "My dog died.", "Oh no!", "Yes.", "How old was he?", "Ten.")
    (one,) = of(prepare(corpus(tmp_path, train=rows), "empathetic_dialogues")[0], "train")
    (target,) = examples([one], "last", None)
    assert target == Example("train/c", "sad", one.turns[:3], "How old was he?")


def many(*texts, first="user", acts=()):
    """A dialogue whose turns alternate."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    turns = (Turn(roles[i % 2], text, dict(acts).get(i)) for i, text in enumerate(texts))
    return Dialogue("train/1", "test", "train", "sad", tuple(turns))


def test_every_assistant_turn_is_a_target_with_the_last_turns_before_it():
    one = many("a", "b", "c", "d", "e", "f", acts=[(3, "greet")])
    found = examples([one], "every", None)
    assert [(each.id, each.target, each.act) for each in found] == [
        ("train/1:1", "b", None),
        ("train/1:3", "d", "greet"),
        ("train/1:5", "f", None),
    ]
    assert [each.context for each in found] == [one.turns[:1], one.turns[:3], one.turns[:5]]
    assert [each.context for each in examples([one], "every", 3)] == [one.turns[:1], one.turns[:3], one.turns[2:5]]
    # Of an even number the first would be an assistant's turn, which no context begins with.
    assert examples([one], "every", 4) == examples([one], "every", 3)
    assert examples([one], "every", 2) == examples([one], "every", 1)
    (last,) = examples([one], "last", 1)
    assert (last.id, last.context) == ("train/1", one.turns[4:5])


def test_a_system_turn_stands_before_every_context(tmp_path):
    system, spoken = Turn("system", "Be kind."), many("a", "b", "c", "d", "e", "f").turns
    plain = Dialogue("train/2", "test", "train", "sad", spoken)
    both = [Dialogue("train/1", "test", "train", "sad", (system, *spoken)), plain]
    for targets, turns in (("last", None), ("last", 1), ("every", None), ("every", 3)):
        found, without = examples(both, targets, turns), examples([plain], targets, turns)
        half = len(without)
        assert [e.context for e in found[:half]] == [(system, *e.context) for e in without]
        assert found[half:] == without and [e.target for e in found[:half]] == [e.target for e in without]
    # Assistant turns between it and the first user turn are cut and counted as without it.
    dropped = Counter()
    opened = Dialogue("train/3", "test", "train", "sad", (system, Turn("assistant", "Hello."), *spoken))
    alone = Dialogue("train/4", "test", "train", "sad", (system, spoken[0]))
    assert [d.turns for d in usable([opened, alone], dropped)] == [(system, *spoken)]
    assert dropped == Counter(train_opening_turn=1, train_no_assistant_turn=1)
    # Dialogues with other system turns are copies nevertheless.
    copies = [replace(both[0], split="test"), replace(plain, id="train/5"), replace(opened, turns=(system, *spoken))]
    assert without_copies(copies)[0] == copies[:1]


def test_an_opening_of_the_assistant_is_no_target_and_in_no_context():
    assert examples([many("Hello.", "Hi.", first="assistant")], "last", None) == []
    one = many("Hello.", "Hi.", "So?", "Well.", "Hm.", first="assistant")
    (last,) = examples([one], "last", None)
    assert (last.target, last.context) == ("Hm.", one.turns[1:4])
    assert [each.context for each in examples([one], "every", None)] == [one.turns[1:2], one.turns[1:4]]


def test_an_opening_of_the_assistant_is_dropped_and_counted(tmp_path, monkeypatch):
    opened = many("Hello.", "Hi.", "So?", first="assistant")
    alone = many("Hello.", first="assistant")
    reader = SimpleNamespace(read=lambda folder: ([opened, alone, many("a", "b")], Counter()))
    monkeypatch.setitem(sys.modules, "attune.corpora.readers.esconv", reader)
    kept, dropped = prepare(tmp_path, "esconv")
    assert [one.turns for one in kept] == [opened.turns[1:], many("a", "b").turns]
    assert +dropped == Counter(train_opening_turn=2, train_no_assistant_turn=1)


def test_a_dialogue_without_a_reply_is_dropped_and_counted(tmp_path):
    rows = [*talk("c1", "My dog died."), *OTHERS["train"], row("c2", 1, "My cat", 1), row("c2", 2, "died.", 1)]
    kept, dropped = prepare(corpus(tmp_path, train=rows, valid=talk("c1", "Hm.")), "empathetic_dialogues")
    assert [one.id for one in kept] == ["train/hit:1_conv:1", "test/hit:3_conv:3"]
    assert +dropped == Counter(train_no_assistant_turn=2, valid_no_assistant_turn=1)
    assert examples(of(read(tmp_path)[0], "train")[:1], "last", None) == []


def test_a_train_dialogue_that_is_held_out_is_removed_and_counted(tmp_path):
    train = [
        *talk("c1", "my dog died...", "OH NO", label="angry"),  # in test, but for case and punctuation
        *talk("c2", "I moved house!", "Where  to?"),  # in valid
        *talk("c3", "My dog died.", "Oh no!", "Yes."),  # the user has the last word, and nothing answers it
        *talk("c4", "My dog died.", "Oh yes!"),
    ]
    valid, test = talk("v", "I moved house.", "Where to?"), talk("t", "My dog died.", "Oh no!")
    kept, dropped = prepare(corpus(tmp_path, train=train, valid=valid, test=test), "empathetic_dialogues")
    assert [one.id for one in kept] == ["train/c4", "valid/v", "test/t"]
    assert +dropped == Counter(train_overlap_with_held_out=3)


BROKEN = {
    "few columns": (["c,1,sad,I was sad.,1"], "train.csv:2: 5 columns, expected at least 6: 'c'"),
    "a line break": (
        talk("c", "My dog\ndied."),
        "train.csv:3: 3 columns, expected at least 6: 'died.'",
    ),
    "no number": (
        [*talk("c", "My dog died.", "Oh no!"), "c,three,sad,I was sad.,1,Yes.,,"],
        "train.csv:4: utterance_idx 'three' is no number",
    ),
    "empty utterance": (talk("c", "My dog died.", "  "), "train.csv:3: empty utterance"),
    "empty label": (talk("c", "My dog died.", label=""), "train.csv:2: empty context"),
    "not together": (
        [*talk("c", "My dog died.", "Oh no!"), *talk("d", "Hi.", "Hello."), row("c", 3, "Yes.")],
        "train.csv:6: the rows of dialogue 'c' are not together",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row(tmp_path, case):
    rows, message = BROKEN[case]
    with pytest.raises(DataError, match=f"^{re.escape(f'{tmp_path}/{message}')}$"):
        read(corpus(tmp_path, train=rows))


def test_a_wrong_header(tmp_path):
    path = corpus(tmp_path) / "valid.csv"
    path.write_text("id,text\n1,Hi.\n", encoding="utf-8")
    message = re.escape(
        f"{path}:1: the header should begin with conv_id,utterance_idx,context,prompt,speaker_idx,utter"
    )
    with pytest.raises(DataError, match=f"^{message}ance, found 'id,text'$"):
        read(tmp_path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"valid\.csv:1: .* found ''$"):
        read(tmp_path)


def test_a_file_in_another_encoding(tmp_path):
    corpus(tmp_path, encoding="latin-1", test=talk("c", "My café closed.", "Oh no!"))
    at = (tmp_path / "test.csv").read_bytes().index(b"\xe9")
    with pytest.raises(DataError, match=rf"test\.csv:\d+: not UTF-8 at byte {at}: "):
        read(tmp_path)


def test_a_missing_file(tmp_path):
    (corpus(tmp_path) / "test.csv").unlink()
    with pytest.raises(DataError, match=r"test\.csv is missing: run stage `download`$"):
        read(tmp_path)


def written_by_pandas(folder, talks, columns=COLUMNS, **options):
    """A corpus of talks by split, (label, texts) each, as pandas writes it."""
    folder.mkdir()
    for split, some in talks.items():
        rows = [
            (f"{split}{n}", i, label, f"Once, {n}", i % 2, text)
            for n, (label, texts) in enumerate(some)
            for i, text in enumerate(texts, start=1)
        ]
        frame = pd.DataFrame(rows, columns=COLUMNS)
        frame.reindex(columns=columns).to_csv(folder / f"{split}.csv", index=False, **options)
    return folder


TALKS = {
    "train": [
        ("sad", ('Well, "so" it goes', "Oh, tell me,\nall of it")),
        ("joyful", ("I won, at last!", "Great, really")),
    ],
    "valid": [("sad", ("Plain.", "Words."))],
    "test": [("sad", ('He said "no"', 'Did he say "no"?'))],
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quoting": csv.QUOTE_ALL},
        {"quoting": csv.QUOTE_NONNUMERIC},
        {"lineterminator": "\r\n"},
        {"columns": ORIGINAL},
    ],
    ids=str,
)
def test_csv_as_pandas_writes_it_is_read_as_it_was_written(options, tmp_path, capsys):
    dialogues, dropped = read(written_by_pandas(tmp_path / "corpus", TALKS, **options))
    expected = [(s, label, texts) for s, some in TALKS.items() for label, texts in some]
    found = [(d.split, d.label, tuple(turn.text.replace("\r\n", "\n") for turn in d.turns)) for d in dialogues]
    assert found == expected and not dropped
    # Texts without comma, quote and line end look alike in both forms, and are equal.
    said = capsys.readouterr().err
    assert "train.csv: read as quoted csv (RFC 4180)" in said and "test.csv: read as" in said


def test_the_published_form_is_not_taken_for_quoted_csv(tmp_path):
    rows = talk("c", '"Why me?" I thought_comma_ "why"', 'He said ""no""', '"')
    folder = corpus(tmp_path, train=rows)
    assert [turn.text for turn in of(read(folder)[0], "train")[0].turns] == [
        '"Why me?" I thought, "why"',
        'He said ""no""',
        '"',
    ]
    assert not is_quoted(folder / "train.csv")


@pytest.mark.parametrize(
    "line, message",
    [
        ("c,2,sad,p,0,Oh, no", "3: 7 fields, but the header has 6: a text with a comma is quoted, as pandas"),
        ('c,2,sad,p,0,"Oh, no",more', "3: 7 fields, but the header has 6"),
        ('c,2,sad,p,0,"Oh, no', "3: no valid csv: unexpected end of data"),
        ('c,2,sad,p,"Oh, no"', "3: 5 columns, expected at least 6"),
    ],
)
def test_a_row_with_more_fields_than_the_header_is_refused(line, message, tmp_path):
    first = 'c,1,sad,p,1,"My dog, Rex, died."' if '"' in line else "c,1,sad,p,1,My dog died."
    path = corpus(tmp_path) / "train.csv"
    path.write_text("\n".join([",".join(COLUMNS), first, line, ""]), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"{path}:{message}")):
        read(tmp_path)


ODD = [
    Dialogue(
        "train/1", "test", "train", "sad", (Turn("user", "🤗 👩‍👩‍👧 é é"), Turn("assistant", "שלום, مرحبا", "greet"))
    ),
    Dialogue(
        "train/2", "test", "train", "sad", (Turn("user", "one\ntwo\r\n\tthree"), Turn("assistant", "\"a\", 'b' \\n"))
    ),
    Dialogue("train/3", "test", "train", "sad", (Turn("user", ""),)),
]


def test_parquet_gives_back_what_was_written(tmp_path):
    path = tmp_path / "some" / "train.parquet"
    write_dialogues(ODD, path)
    assert read_dialogues(path) == ODD
    write_dialogues([], path)
    assert read_dialogues(path) == []


def test_the_same_corpus_gives_the_same_bytes(tmp_path):
    rows = [talk(f"c{i}", f"Story {i}.", "Oh no!") for i in range(20)]
    for name, order in (("first", rows), ("second", rows), ("third", rows[::-1])):
        (tmp_path / name).mkdir()
        corpus(tmp_path / name, train=[line for lines in order for line in lines])
        store = Store(tmp_path / name, {}, 0)
        store.add(usable(read(tmp_path / name)[0], Counter()))
        store.write(tmp_path / name, Counter())
    for split in ("train", "valid", "test"):
        files = [(tmp_path / name / f"{split}.parquet").read_bytes() for name in ("first", "second", "third")]
        assert files[0] == files[1] == files[2]


def test_describe_by_hand():
    def one(name, split, label, *texts):
        turns = tuple(Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))
        return Dialogue(f"{split}/{name}", "test", split, label, turns)

    dialogues = [
        one("1", "train", "sad", "My dog died.", "Oh no!", "Yes."),
        one("2", "train", "proud", "I did it!", "Well done!"),
        one("3", "train", "sad", "I failed.", "Oh."),
        one("1", "valid", "sad", "My car broke down.", "Again?"),
        one("2", "valid", "angry", "He lied!", "Who?"),
        one("1", "test", "angry", "he lied", "who"),
    ]
    counts = sum((count(dialogue_table(of(dialogues, split)), split) for split in SPLITS), Counter())
    assert describe(counts, Counter(valid_no_assistant_turn=1, train_overlap_with_held_out=0)) == {
        "train_dialogues": 3,
        "train_turns": 7,
        "train_words_per_turn": 2.0,  # (3 + 2 + 1 + 3 + 2 + 2 + 1) / 7
        "valid_dialogues": 2,
        "valid_turns": 4,
        "valid_words_per_turn": 2.0,  # (4 + 1 + 2 + 1) / 4
        "test_dialogues": 1,
        "test_turns": 2,
        "test_words_per_turn": 1.5,  # (2 + 1) / 2
        "dropped_train_overlap_with_held_out": 0,
        "dropped_valid_no_assistant_turn": 1,
    }
    assert label_counts(counts) == {"train_label_proud": 1, "train_label_sad": 2}
    assert describe(count(dialogue_table([]), "train"), Counter())["train_words_per_turn"] == 0


def test_the_stage_reads_its_corpus_and_writes_three_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = Path("data/raw/mine")
    raw.mkdir(parents=True)
    corpus(raw, train=[*OTHERS["train"], *talk("c", "I cry."), *talk("b", "Hm.", "What?")])
    main(factory.corpus(), factory.pairs(rule="dbt"), 13)
    written = {path.name: [one.id for one in read_dialogues(path)] for path in Path("data/dialogues").iterdir()}
    assert written == {
        "train.parquet": ["train/b", "train/hit:1_conv:1"],
        "valid.parquet": ["valid/hit:2_conv:2"],
        "test.parquet": ["test/hit:3_conv:3"],
    }
    metrics = json.loads(Path("metrics/data.json").read_text(encoding="utf-8"))
    assert metrics["train_dialogues"] == 2
    assert metrics["dropped_train_no_assistant_turn"] == 1
