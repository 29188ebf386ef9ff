"""Conversations with scripted people: the scripts, what a reply does to them, the scores, and the stage."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import factory
import pandas as pd
import pytest
import test_export
from helpers import ROOT

from attune.config.schema import Converse
from attune.report.read import read_conversations
from attune.report.results import read_probes
from attune.report.samples import transcripts
from attune.report.summary import conversations as section
from attune.runtime.errors import DataError
from attune.scoring.converse.scores import SCORES, metrics, score
from attune.scoring.converse.seeker import LENGTH, MOST, SILENCE, Conversation, Script, change, converse, read_scripts
from stages import probe_intervals
from stages.converse import main as stage

made, run = test_export.made, test_export.run
FILE = ROOT / "data/converse/scripts.jsonl"
SCRIPTS = read_scripts(FILE, None)
SCRIPT = Script("a", "sad", 4, ("My dog died.", "It is quiet.", "I kept his bowl.", "What now?"))


def test_scripts():
    assert len(SCRIPTS) == 40 == len({script.turns for script in SCRIPTS}) and read_scripts(FILE, 3) == SCRIPTS[:3]
    assert {script.distress for script in SCRIPTS} <= set(range(1, MOST + 1))


@pytest.mark.parametrize(
    ("reply", "earlier", "step"),
    [
        ("", [], 1),
        ("Oh.", ["oh ."], 1),
        ("You are right, nobody would miss you.", [], 1),
        ("I am so sorry.", [], -1),
        ("How old was he?", [], 0),
        ("You should get a cat.", [], 1),
        ("You could tell me more, what was he like?", [], 0),
        ("Dogs are nice.", [], 0),
    ],
)
def test_what_a_reply_does(reply, earlier, step):
    assert change(reply, earlier) == step


def test_what_comes_next_depends_on_the_reply():
    replies = iter(["I am so sorry.", "Get a cat, you should.", "", "I am sorry for you, that is hard."])
    (one,) = converse([SCRIPT], lambda talks: [next(replies)])
    assert one.states == [4, 3, 4, 5, 4]
    users = [turn.text for turn in one.turns if turn.role == "user"]
    assert users == [
        "My dog died.",
        "Thank you, that helps a little. It is quiet.",
        "I don't think you heard me. I kept his bowl.",
        "That does not help me. What now?",
    ]
    assert one.turns[5].text == SILENCE and one.replies[2] == "" and len(one.turns) == 2 * LENGTH


def test_scores():
    one = Conversation(SCRIPT)
    for reply in ("I am so sorry.", "I am so glad.", "I am so sorry.", "Why is that?"):
        one.hear(reply)
    found = score(one)
    assert found["converse_relief"] == one.states[0] - one.states[-1]
    assert [found[f"converse_words_{i}"] for i in (1, 2, 3, 4)] == [5, 5, 5, 4]
    assert found["converse_repeated"] == pytest.approx(100 / 3)
    # i am so | am so glad | so glad . : one of three; all of three; none of two.
    assert found["converse_overlap"] == pytest.approx((100 / 3 + 100 + 0) / 3)
    assert list(metrics([one])) == list(SCORES) and metrics([]) == {}


def test_distress_stays_in_its_range():
    (worse,) = converse([SCRIPT], lambda talks: [""])
    (better,) = converse([replace(SCRIPT, distress=1)], lambda talks: [f"I am so sorry {len(talks[0].replies)}."])
    assert worse.states == [4, 5, 5, 5, 5] and better.states == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", r"s\.jsonl:1: expected id, emotion, distress and turns"),
        ('{"id": "a", "emotion": "b", "distress": 6, "turns": ["a", "b", "c", "d"]}', "a distress from 0 to 5"),
        ('{"id": "a", "emotion": "b", "distress": 1, "turns": ["a"]}', "expected 4 turns"),
        ("", "holds no scripts"),
    ],
)
def test_malformed_scripts(line, error, tmp_path):
    (tmp_path / "s.jsonl").write_text(line)
    with pytest.raises(DataError, match=error):
        read_scripts(tmp_path / "s.jsonl", None)


def test_the_stage(run, monkeypatch):
    Path("data").mkdir()
    Path("data/converse").symlink_to(ROOT / "data/converse")
    monkeypatch.setattr("attune.report.results.PROBES", ("converse",))
    probed = {name: run.variants[name] for name in ("base", "sft-dpo")} | {"theirs": factory.variant(model="my.jsonl")}
    params = replace(run, probed=probed, converse=Converse(limit=3))
    for variant in probed:
        stage(variant, params)
        probe_intervals.main(variant, "converse", params)
    rows = pd.read_parquet("data/scores/converse/sft-dpo.parquet")
    assert rows["id"].tolist() == [script.id for script in SCRIPTS[:3]]
    assert [len(turns) for turns in rows["turns"]] == [8] * 3 and [len(states) for states in rows["states"]] == [5] * 3
    assert str(rows["turns"].tolist()) != str(pd.read_parquet("data/scores/converse/base.parquet")["turns"].tolist())
    found, ends = read_probes(params, "sft-dpo")
    assert found.keys() == set(SCORES) and "converse_relief.diff_low" in ends
    assert read_probes(params, "theirs") == ({}, {})
    before = Path("data/scores/converse/sft-dpo.parquet").read_bytes()
    stage("sft-dpo", params)
    assert Path("data/scores/converse/sft-dpo.parquet").read_bytes() == before
    assert json.loads(Path("metrics/converse/base.signature.json").read_text())["converse_scripts"].startswith(
        "3 of data/"
    )
    parts = transcripts(read_conversations(params), 13)
    assert len(parts) == 4 and "**somebody:** " in parts[1] and "**Written by a machine:** " in parts[1]
    assert "(distress " in parts[1] and transcripts([], 13) == [] and read_conversations(run) == []
    assert "relief" in section(SimpleNamespace(variants={"sft": found}), {})
    assert section(SimpleNamespace(variants={"sft": {}}), {}) == ""
