"""The reader of AnnoMI in its two layouts, its split, and the sample in its format."""

import csv
import io
import re
from collections import Counter
from itertools import chain
from pathlib import Path
from random import Random

import pytest
from helpers import prepare

from attune.corpora.readers.annomi import BEHAVIOURS, QUALITIES, TALK_TYPES, majority, read
from attune.corpora.splits import split_groups
from attune.data.dialogue import SPLITS, Dialogue, Turn
from attune.data.examples import examples
from attune.runtime.errors import DataError
from attune.tools.sample_data.annomi import HEADER, make_file
from attune.tools.sample_data.text import load_phrases

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data/sample/annomi_sample"
WHOLE = {"mi_quality": "high", "video_title": "A", "video_url": "https://x.org/1", "topic": "smoking cessation"}


def row(number, text, act, transcript="7", annotator=None, **more):
    """A row as a dictionary; the act gives the speaker."""
    speaker = "therapist" if act in BEHAVIOURS else "client"
    acts = {"main_therapist_behaviour": "n/a", "client_talk_type": "n/a"}
    acts["main_therapist_behaviour" if speaker == "therapist" else "client_talk_type"] = act
    said = {"utterance_id": str(number), "interlocutor": speaker, "timestamp": "00:00:01", "utterance_text": text}
    annotated = {} if annotator is None else {"annotator_id": str(annotator)}
    return {"transcript_id": transcript} | WHOLE | said | acts | annotated | more


def corpus(folder, rows, file="AnnoMI-simple.csv", bom=False):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (folder / file).write_text(stream.getvalue(), encoding="utf-8-sig" if bom else "utf-8")
    return folder


TALK = [
    row(1, "I smoke.", "neutral"),
    row(0, "Hi, what brings you?", "question"),
    row(2, "You smoke.", "reflection"),
    row(3, "And what \nthen?", "question"),
    row(4, 'I "should" stop, yes.', "change"),
]


@pytest.mark.parametrize("bom", [False, True])
def test_a_transcript(tmp_path, bom):
    (one,), dropped = read(corpus(tmp_path, TALK, bom=bom))
    turns = (
        Turn("assistant", "Hi, what brings you?", "question"),
        Turn("user", "I smoke.", "neutral"),
        Turn("assistant", "You smoke. And what then?", "question"),
        Turn("user", 'I "should" stop, yes.', "change"),
    )
    assert one == Dialogue("train/7", "annomi", "train", "smoking cessation", turns, "high") and not dropped


def test_the_majority_of_the_annotators_counts(tmp_path):
    votes = ["reflection", "question", "question"]
    rows = [row(1, "So?", act, annotator=i) for i, act in enumerate(votes)] + [row(0, "Hm.", "sustain", annotator=4)]
    (one,), dropped = read(corpus(tmp_path, rows, "AnnoMI-full.csv"), "AnnoMI-full.csv")
    assert [turn.act for turn in one.turns] == ["sustain", "question"] and not dropped


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_a_tie_goes_to_the_lowest_annotator_and_is_counted(tmp_path, order):
    votes = {2: "question", 3: "reflection", 9: "question", 10: "reflection"}
    rows = [row(1, "So?", votes[a], annotator=a) for a in (list(votes)[i] for i in order)]
    (one,), dropped = read(corpus(tmp_path, [row(0, "Hm.", "sustain", annotator=0), *rows]))
    assert one.turns[1].act == "question" and dropped == {"train_tied_label": 1}


def test_majority_by_hand():
    assert majority(["a"]) == ("a", False)
    assert majority(["b", "a", "a"]) == ("a", False)
    assert majority(["b", "a", "c", "a", "b"]) == ("b", True)


BROKEN = {
    "quality": (row(0, "Hi.", "other", mi_quality="medium"), "2: mi_quality 'medium' is none of 'high', 'low'"),
    "speaker": (row(0, "Hi.", "other", interlocutor="nurse"), "2: interlocutor 'nurse' is none of"),
    "act": (row(0, "Hi.", "other", main_therapist_behaviour="n/a"), "2: main_therapist_behaviour 'n/a' is none of"),
    "talk type": (row(0, "Hi.", "change", client_talk_type="chat"), "2: client_talk_type 'chat' is none of"),
    "text": (row(0, "  ", "other"), "2: empty utterance_text"),
    "topic": (row(0, "Hi.", "other", topic=""), "2: empty topic"),
    "number": (row("-1", "Hi.", "other"), "2: utterance_id '-1' is not a whole number of at least 0"),
    "annotator": (row(0, "Hi.", "other", annotator="x"), "2: annotator_id 'x' is not a whole number of at least 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row(tmp_path, case):
    bad, message = BROKEN[case]
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/AnnoMI-simple.csv:{message}")):
        read(corpus(tmp_path, [bad]))


BETWEEN = {
    "twice": ([row(0, "Hi.", "other")] * 2, "3: utterance_id 0 is also in line 2"),
    "twice by one annotator": ([row(0, "Hi.", "other", annotator=3)] * 2, "3: utterance_id 0 is also in line 2"),
    "two texts": (
        [row(0, "Hi.", "other", annotator=1), row(0, "Ho.", "other", annotator=2)],
        "3: utterance_text 'Ho.', but 'Hi.' in line 2",
    ),
    "two qualities": ([row(0, "Hi.", "other"), row(1, "Ho.", "change", mi_quality="low")], "3: mi_quality 'low', but"),
    "not together": (
        [row(0, "Hi.", "other"), row(0, "Hi.", "other", "8"), row(1, "Ho.", "change")],
        "4: the rows of transcript_id '7' are not together",
    ),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_rows_that_do_not_go_together(tmp_path, case):
    rows, message = BETWEEN[case]
    with pytest.raises(DataError, match=re.escape(f"AnnoMI-simple.csv:{message}")):
        read(corpus(tmp_path, rows))


def test_files_that_are_none(tmp_path):
    path = tmp_path / "AnnoMI-simple.csv"
    with pytest.raises(DataError, match=r"AnnoMI-simple\.csv is missing: run stage `download`$"):
        read(tmp_path)
    for content, message in (
        (b"", r":1: no column transcript_id, .*; found nothing$"),
        (b"a,b\n", r":1: no column transcript_id, .*; found a, b$"),
        (b"caf\xe9", r":1: not UTF-8 at byte 3: save it as UTF-8$"),
        (",".join(HEADER).encode() + b'\n1,"high', r":2: no valid csv: "),
        (",".join(HEADER).encode() + b"\n\n1,high\n", r":3: 2 fields, but the header has 11: '1'$"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read(tmp_path)


def test_a_line_separator_of_unicode_is_no_end_of_a_row(tmp_path):
    rows = [row(0, "One\u2028two\x85three.", "other"), row(1, "Yes.", "change")]
    assert read(corpus(tmp_path, rows))[0][0].turns[0].text == "One two three."


def video(number, quality, transcript, url):
    texts = [(0, f"Story {transcript}.", "sustain"), (1, "So?", "question")]
    return [row(i, text, act, transcript, mi_quality=quality, video_url=url) for i, text, act in texts]


@pytest.mark.parametrize("seed", range(5))
def test_videos_are_split_never_their_transcripts_and_whatever_the_order(tmp_path, seed):
    random = Random(seed)
    made = [(str(i), random.choice(QUALITIES), f"https://x.org/{random.randint(0, 30)}") for i in range(80)]
    blocks = [video(i, quality, name, url) for i, (name, quality, url) in enumerate(made)]
    found = read(corpus(tmp_path, list(chain.from_iterable(blocks))))[0]
    urls = {name: url for name, _, url in made}
    splits = {url: {d.split for d in found if urls[d.id.split("/")[1]] == url} for url in urls.values()}
    assert all(len(some) == 1 for some in splits.values())
    assert len({d.id for d in found}) == 80 == len({d.text for d in found})
    random.shuffle(blocks)
    assert sorted(read(corpus(tmp_path, list(chain.from_iterable(blocks))))[0], key=lambda d: d.id) == sorted(
        found, key=lambda d: d.id
    )


def test_the_shares_of_a_split_hold_in_every_stratum():
    strata = {f"g{i}": "rare" if i < 20 else "usual" for i in range(120)}
    found = split_groups(strata)
    counts = Counter((strata[name], split) for name, split in found.items())
    assert counts == {
        ("rare", "train"): 14, ("rare", "valid"): 3, ("rare", "test"): 3,
        ("usual", "train"): 70, ("usual", "valid"): 15, ("usual", "test"): 15,
    }  # fmt: skip
    assert split_groups(dict(reversed(strata.items()))) == found
    assert set(split_groups({f"g{i}": "" for i in range(7)}).values()) == set(SPLITS)


# The sample


def test_the_sample_is_what_its_phrases_give():
    text = make_file(load_phrases(ROOT / "data/sample/annomi_phrases.yaml"))
    assert (SAMPLE / "AnnoMI-simple.csv").read_text(encoding="utf-8") == text and text.isascii()
    assert {path.name for path in SAMPLE.iterdir()} == {"AnnoMI-simple.csv", "LICENCE"}


def test_the_readme_counts_the_acts_of_the_sample():
    with (SAMPLE / "AnnoMI-simple.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    acts = Counter(r[name] for r in rows for name in ("main_therapist_behaviour", "client_talk_type"))
    text = (SAMPLE.parent / "README.md").read_text(encoding="utf-8")
    assert f"with {len(rows)} utterances" in text
    assert all(f"| `{act}` | {acts[act]} |" in text for act in (*BEHAVIOURS, *TALK_TYPES))


def test_the_sample_has_a_low_answer_to_what_every_high_one_answers():
    """A rule that opposes the qualities on one topic after one talk type finds both sides of all of them."""
    dialogues, dropped = prepare(SAMPLE, "annomi")
    assert len({one.text for one in dialogues}) == len(dialogues) == 60
    assert Counter((one.split, one.quality) for one in dialogues) == {
        ("train", "high"): 28, ("valid", "high"): 6, ("test", "high"): 6,
        ("train", "low"): 14, ("valid", "low"): 3, ("test", "low"): 3,
    }  # fmt: skip
    assert dropped["train_opening_turn"] > 30
    train = examples([d for d in dialogues if d.split == "train"], "every", 7)
    heard = {quality: {(e.label, e.context[-1].act) for e in train if e.quality == quality} for quality in QUALITIES}
    assert heard["high"] == heard["low"] and len(heard["high"]) == 5 * 3


def test_the_sample_has_every_behaviour_in_every_split_and_in_both_qualities():
    found = Counter(
        (d.split, d.quality, e.act) for d in prepare(SAMPLE, "annomi")[0] for e in examples([d], "every", None)
    )
    assert all(found["train", quality, act] for quality in QUALITIES for act in BEHAVIOURS)
    for split in SPLITS:
        assert min(sum(found[split, quality, act] for quality in QUALITIES) for act in BEHAVIOURS) >= 10


def test_a_line_of_the_sample_has_one_act():
    acts = {}
    for one in prepare(SAMPLE, "annomi")[0]:
        for turn in one.turns:
            acts.setdefault(turn.text, set()).add(turn.act)
    assert {act for some in acts.values() for act in some} == {*BEHAVIOURS, *TALK_TYPES}
    assert all(len(some) == 1 for some in acts.values())
    lines = [line for phrase in flat(load_phrases(ROOT / "data/sample/annomi_phrases.yaml")) for line in phrase]
    assert [line for line, n in Counter(lines).items() if n > 1] == []


def flat(value):
    """The lists of written lines below a value, without slots."""
    if isinstance(value, list):
        return [value]
    return [found for key, one in value.items() if key != "slots" for found in flat(one)]


# The real corpus


@pytest.mark.corpora
def test_the_real_corpus_has_the_same_acts_in_both_files(corpora_dir):
    simple, none = read(corpora_dir / "annomi")
    full, ties = read(corpora_dir / "annomi", "AnnoMI-full.csv")
    assert len(simple) == len(full) == 133
    assert sorted(simple, key=lambda d: d.id) == sorted(full, key=lambda d: d.id)
    assert not none and sum(ties.values()) == 14
    assert Counter((d.split, d.quality) for d in simple) == {
        ("train", "high"): 81, ("valid", "high"): 15, ("test", "high"): 14,
        ("train", "low"): 16, ("valid", "low"): 4, ("test", "low"): 3,
    }  # fmt: skip
    turns = Counter(turn.act for d in simple for turn in d.turns)
    assert sum(turns.values()) == 9699 - 38  # utterances that follow one of the same speaker
    assert set(turns) == {*BEHAVIOURS, *TALK_TYPES}
