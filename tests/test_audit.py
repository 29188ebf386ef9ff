"""The audit finds and names planted leaks of every kind, and none in the embedded samples."""

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT
from test_recipes import COUNSEL, MICRO, with_samples

from attune.classifiers.behaviour.learn import label_sentences
from attune.classifiers.epitome.annotations import split_of
from attune.config.params import compose, load
from attune.config.schema import Classifier
from attune.corpora.leakage import HeldOut, copied, sentences_of, texts_of, without_copies
from attune.corpora.readers import annomi
from attune.data.dialogue import Dialogue, Turn, normalise, write_dialogues
from attune.data.pair import Pair
from attune.pairs.metrics import write_pairs
from attune.runtime.errors import DataError
from stages import audit, pairs, prepare

ASKED = "My neighbour's café closed last Friday, and I had worked there since I left school."
REPLY = "Nobody should lose work like that; which part of it is the hardest for you now?"
OTHER = "I painted the whole fence on my own and then the rain washed all of it off again."
ANSWER = "What a pity after all that work in the sun, will you paint it a second time?"


def dialogue(split, name, *texts):
    turns = tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    return Dialogue(f"{split}/{name}", "c", split, "sad", turns)


REDDIT, SHORTS = "data/raw/epitome", ("er", "ip", "ex")
TEST = dialogue("test", "t", ASKED, REPLY, "Thank you.")
VALID = dialogue("valid", "v", OTHER, ANSWER)
TRAIN = [dialogue("train", str(i), f"I lost key {i}.", "Oh no!", "Thank you.", "You are welcome.") for i in range(3)]


def params(behaviour=False):
    base = load(ROOT / "params.yaml")
    classifiers = dict(base.classifiers)
    if behaviour:
        data, sentences = "data/raw/mine", base.behaviour.sentences
        classifiers["behaviour"] = Classifier(data, sentences, base.behaviour.table)
    return replace(
        base,
        rounds={"e1": base.rounds["e1"]},
        model=replace(base.model, source="made"),
        tiny=replace(base.tiny, corpus="mine"),
        epitome=replace(base.epitome, data=REDDIT, levels=REDDIT, checkpoints=REDDIT),
        behaviour=replace(base.behaviour, data="data/raw/mine"),
        classifiers=classifiers,
    )


def rows(file, *some):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(some)


def put_pairs(*some):
    write_pairs(list(some), Path("data/pairs/e1.parquet"))


def pair(chosen="Oh no!", rejected="Great!", id="train/0", other="train/1", prompt="I lost key 0."):
    return Pair(id, 1, (Turn("user", prompt),), chosen, rejected, "sad", "joyful", other)


def put_base(*some):
    Path("data/raw/mine").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"turns": list(turns)}) for turns in some]
    Path("data/raw/mine/dialogues.jsonl").write_text("\n".join(lines), encoding="utf-8")


def put_epitome(post="I failed again.", reply="Oh no!"):
    header = ("sp_id", "rp_id", "seeker_post", "response_post", "level", "rationales")
    for file in audit.FILES.values():
        rows(
            Path("data/raw/epitome") / file, header, *((1, 2, text, reply, 0, "") for text in {post, "I failed again."})
        )


def put_acts(*texts):
    """The data of a classifier, in AnnoMI's format; the client speaks first."""
    header = annomi.COLUMNS
    table = [
        (f"{n}", f"{i}", "high", "topic", f"video {n}", "therapist" if i % 2 else "client", text,
         "question" if i % 2 else "n/a", "n/a" if i % 2 else "neutral")
        for n in range(12) for i, text in enumerate(texts if n in audited() else ("Hi.", "Hello."))
    ]  # fmt: skip
    rows(Path("data/raw/mine") / annomi.SIMPLE, header, *table)


def audited():
    """The number of one transcript that is in train."""
    split = annomi._splits([{"video_url": f"video {n}", "mi_quality": "high"} for n in range(12)])
    return [n for n in range(12) if split[f"video {n}"] == "train"][:1]


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """A project without a leak; all splits share a short phrase."""
    monkeypatch.chdir(tmp_path)
    for split, some in {"train": TRAIN, "valid": [VALID], "test": [TEST]}.items():
        write_dialogues(some, Path(f"data/dialogues/{split}.parquet"))
    put_pairs(pair(), pair(id="train/1", other="train/2"))
    put_base(["Thank you.", "You are welcome."], ["Hi.", "Hello."])
    put_epitome()


def test_common_phrase_is_no_leak(clean):
    audit.main(params())
    assert json.loads(Path("metrics/audit.json").read_text(encoding="utf-8")) == {
        "valid_in_test": 0, "valid_checked": 1,
        "train_in_valid": 0, "train_in_test": 0, "train_checked": 3,
        "pairs_in_valid": 0, "pairs_in_test": 0, "pairs_checked": 4,
        "base_in_valid": 0, "base_in_test": 0, "base_checked": 2,
        "epitome_in_valid": 0, "epitome_in_test": 0, "epitome_checked": 3,
    }  # fmt: skip


SHOUTED = ASKED.upper().replace("'", " - ").replace("É", "E\u0301")


def plant(kind):
    match kind:
        case "train":
            copy = dialogue("train", "x", ASKED.replace(" ", "\u00a0 "), REPLY.upper(), "Thanks.", "Bye.")
            write_dialogues([*TRAIN, copy], Path("data/dialogues/train.parquet"))
        case "valid":
            write_dialogues([VALID, dialogue("valid", "w", ASKED, REPLY)], Path("data/dialogues/valid.parquet"))
        case "chosen":
            put_pairs(pair(), pair(chosen=REPLY))
        case "rejected":
            put_pairs(pair(), pair(rejected=REPLY.lower()))
        case "rejected of another dialogue":
            put_pairs(pair(), pair(other="test/t"))
        case "context":
            put_pairs(pair(), pair(prompt=SHOUTED))
        case "base":
            put_base(["Hi.", "Hello."], ["Hi.", "Hello.", ASKED, "Sure."])
        case "base, an exchange":
            put_base(["Hi.", "Hello."], ["So.", ASKED, REPLY])
        case "epitome":
            put_epitome(post=ASKED)
        case "epitome, the reply":
            put_epitome(reply=REPLY)
        case "behaviour":
            put_acts("Hi.", REPLY)


PLANTED = {
    "train": ("train_in_test", 1, r"data/dialogues/train\.parquet: train/x: text of the test dialogue test/t"),
    "valid": ("valid_in_test", 1, r"data/dialogues/valid\.parquet: valid/w: text of the test dialogue test/t"),
    "chosen": (
        "pairs_in_test",
        1,
        r"data/pairs/e1\.parquet, row 2 \(train/0\), chosen: text of the test dialogue test/t",
    ),
    "rejected": ("pairs_in_test", 1, r"e1\.parquet, row 2 \(train/0\), rejected: text of"),
    "rejected of another dialogue": ("pairs_in_test", 1, r"e1\.parquet, row 2 \(train/0\), rejected: text of"),
    "context": ("pairs_in_test", 2, r"e1\.parquet, row 2 \(train/0\), chosen: text of"),
    "base": ("base_in_test", 1, r"data/raw/mine/dialogues\.jsonl:2: text of the test dialogue test/t"),
    "base, an exchange": ("base_in_test", 1, r"dialogues\.jsonl:2: "),
    "epitome": ("epitome_in_test", 3, r"data/raw/epitome/emotional-reactions-reddit\.csv, pair \d: text of"),
    "epitome, the reply": ("epitome_in_test", 3, r"explorations-reddit\.csv, pair \d: text of"),
    "behaviour": ("behaviour_in_test", 1, r"data/raw/mine: train/\d+: text of the test dialogue test/t"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_leak_is_counted_and_named(kind, clean):
    name, count, message = PLANTED[kind]
    plant(kind)
    run = params(behaviour=kind == "behaviour")
    if kind == "behaviour":
        put_base(["Hi."])
        shutil.copytree(ROOT / "data/sample/miti_sentences", "data/sample/miti_sentences")
    metrics, leaks = audit.audit(run)
    assert {key: value for key, value in metrics.items() if "_in_" in key and value} == {name: count}
    assert len(leaks) == count
    with pytest.raises(DataError, match=message):
        audit.main(run)
    assert not Path("metrics/audit.json").exists()


def test_prepare_drops_what_the_audit_finds():
    planted = [
        *TRAIN, VALID, TEST,
        dialogue("train", "same", SHOUTED, REPLY, "Thank you!"),
        dialogue("train", "goes on", ASKED, REPLY, "Well.", "Yes?"),
        dialogue("train", "of valid", OTHER, ANSWER.replace(" ", "  ")),
        dialogue("valid", "of test", ASKED, REPLY),
        dialogue("train", "same question", ASKED, "Oh."),
    ]  # fmt: skip
    assert normalise("CAFE\u0301 ﬁne, Straße") == normalise("café fine... STRASSE")
    kept, dropped = without_copies(planted)
    assert [d.id for d in kept] == [*(d.id for d in TRAIN), VALID.id, TEST.id, "train/same question"]
    assert dropped == Counter(train_overlap_with_held_out=3, valid_overlap_with_test=1)
    assert without_copies(kept) == (kept, Counter(train_overlap_with_held_out=0, valid_overlap_with_test=0))
    assert {d.id for d in without_copies(planted[::-1])[0]} == {d.id for d in kept}
    held_out = HeldOut(kept)
    assert not [d for d in kept if d.split == "train" and held_out.copy_of(d.turns)]


def test_dialogues_without_words_are_no_copies():
    silent = [dialogue("train", "a", "😀", "..."), dialogue("test", "b", "🙂", "!")]
    assert without_copies(silent)[0] == silent
    assert texts_of(()) == copied(()) == set()


def test_classifier_of_adherence_leaves_out_held_out_sentences(tmp_path):
    sentences = [
        f"Sentence number {i} is one that nobody in any of the dialogues says to anybody else at all."
        for i in range(20)
    ]
    test = dialogue("test", "s", "Hm.", f"Well. {sentences[0].upper()} Do you see? {sentences[1]}")
    rows(tmp_path / "boosting_mi_gold_test_output.csv", ("Text", "Ground truth"),
         *((text, "Affirm" if i % 2 else "Warn") for i, text in enumerate(sentences)))  # fmt: skip
    table = {"Affirm": "adherent", "Warn": "non-adherent"}
    everything, none = label_sentences(tmp_path, table, [])
    labelled, left_out = label_sentences(tmp_path, table, [test])
    lost = {turn.reply for turn in everything["train"]} - {turn.reply for turn in labelled["train"]}
    in_train = {turn.reply for turn in everything["train"]} & set(sentences[:2])
    assert none == 0 and lost == in_train and left_out == len(in_train) > 0
    # Sentences that train dialogues have as well are kept.
    again = replace(test, id="train/s", split="train")
    assert sentences_of([test, again], sentences) == {}


@pytest.mark.parametrize(("name", "overrides"), [("empatheticdialogues", MICRO), ("annomi_sample", COUNSEL)])
def test_embedded_samples_have_no_leak(name, overrides, tmp_path, monkeypatch):
    with_samples(tmp_path)
    monkeypatch.chdir(tmp_path)
    compose([*overrides, "model=tiny"])
    run = load()
    shutil.copytree(f"data/sample/{name}", f"data/raw/{name}")
    prepare.main(run.corpus, run.pairs, run.seed)
    for key in run.rounds:
        pairs.main(key, run)
    audit.main(run)
    metrics = json.loads(Path("metrics/audit.json").read_text(encoding="utf-8"))
    assert metrics["train_checked"] > 30 and metrics["pairs_checked"] > 30 and metrics["base_checked"] == 1920
    assert not any(value for key, value in metrics.items() if "_in_" in key)


def test_published_levels_of_test_dialogues_are_counted_and_no_leak(clean):
    """Contexts of the test split, which only a scorer learns from; those that it holds out are not training data."""
    contexts = [[{"role": "user", "content": f"{n}. {ASKED}"}] for n in range(20)]
    header = ("context", "reference", "reply", *(f"{side}level_{one}" for side in ("reference_", "") for one in SHORTS))
    lines = [(json.dumps(context), f"Oh no {n}!", f"Why {n}?", *[0] * 6) for n, context in enumerate(contexts)]
    rows(Path("my_levels/replies-base.csv"), header, *lines)
    learnt = sum(split_of(context[0]["content"]) == "train" for context in contexts)
    one = params()
    audit.main(replace(one, epitome=replace(one.epitome, levels="my_levels")))
    found = json.loads(Path("metrics/audit.json").read_text(encoding="utf-8"))
    # A reply of the system and one of people.
    assert 0 < learnt < 20 and found["levels_checked"] == 2 * learnt
    assert found["levels_of_held_out"] == 0 and found["epitome_checked"] == 3
    turns = [{"role": "user", "content": ASKED}]
    lines = [(json.dumps([{"role": "user", "content": f"Hi {n}."}, {"role": "assistant", "content": "Hi."}, *turns]),
              "Oh no!", f"Why {n}?", *[0] * 6) for n in range(20)]  # fmt: skip
    rows(Path("my_levels/replies-base.csv"), header, *lines)
    audit.main(replace(one, epitome=replace(one.epitome, levels="my_levels")))
    found = json.loads(Path("metrics/audit.json").read_text(encoding="utf-8"))
    assert found["levels_of_held_out"] == found["levels_checked"] > 0
