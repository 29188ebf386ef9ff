"""Conversations with scripted people: the scripts, what a reply does to them, the scores, and the stage."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import factory
import pandas as pd
import pytest
import test_export
from helpers import ROOT
from test_endpoint import completion, serving

from attune.report.read import read_conversations
from attune.report.results import read_probes
from attune.report.samples import transcripts
from attune.report.summary import conversations as section
from attune.runtime.errors import DataError, UserError
from attune.runtime.io import read_prompt
from attune.scoring.converse.played import PLACES, longest, message, prompt
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
    params = replace(run, probed=probed, converse=factory.converse())
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
    parts = transcripts(read_conversations(params), 13, False)
    assert len(parts) == 4 and "**somebody:** " in parts[1] and "**Written by a machine:** " in parts[1]
    assert "(distress " in parts[1] and transcripts([], 13, False) == [] and read_conversations(run) == []
    assert "With scripted people" in section(SimpleNamespace(variants={"sft": found}), {}, params)
    assert section(SimpleNamespace(variants={"sft": {}}), {}, params) == ""


PROMPT = ROOT / "data/prompts/seeker.txt"


def test_what_the_person_is_asked():
    one = Conversation(SCRIPT)
    one.hear("I am so sorry for $5.")
    text = prompt(read_prompt(PROMPT, PLACES, "converse.prompt"), one)
    assert "What you feel: sad\n" in text and "5 (as bad as it gets): 3\n" in text
    assert "\nMy dog died.\nIt is quiet.\nI kept his bowl.\nWhat now?\n" in text
    assert "\nYou: My dog died.\nSupporter: I am so sorry for $5.\n" in text


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Thank you.", "Thank you."),
        (' You: "I miss him.\nSo much."\nSupporter: I see.\nYou: Yes.', "I miss him. So much."),
        ("Supporter: I see.\nYou: Yes.", None),
        ("You: ", None),
        ("\u201cOh.\u201d", "Oh."),
        ("He told me: go.", "He told me: go."),
        ("  ", None),
        (None, None),
    ],
)
def test_what_an_answer_says(answer, said):
    assert message(answer) == said


def test_the_estimate_is_of_the_longest_conversations():
    template = read_prompt(PROMPT, PLACES, "converse.prompt")
    asked = []

    def play(talks):
        asked.extend(prompt(template, one) for one in talks)
        return ["y" * 50] * len(talks)

    converse([SCRIPT], lambda talks: ["x" * 90], play)
    most = longest(template, [SCRIPT], 90, 50)
    # But for the names before the turns and the line ends between them.
    assert [0 <= len(text) - len(bound) < 60 for text, bound in zip(asked, most, strict=True)] == [True] * 3


def play(run, url, **changes):
    """Plays three people by an endpoint."""
    Path("data").mkdir(exist_ok=True)
    if not Path("data/converse").exists():
        Path("data/converse").symlink_to(ROOT / "data/converse")
    settings = {
        "converse": factory.converse(seeker="endpoint", base_url=url),
        "endpoint": factory.endpoint(concurrency=1, retries=0),
    }
    stage("sft-dpo", replace(run, probed=run.variants, **settings | changes), Path("a.sqlite"))


def spoken():
    turns = pd.read_parquet("data/scores/converse/sft-dpo.parquet")["turns"]
    return [[turn["text"] for turn in one if turn["role"] == "user"] for one in turns]


def test_an_endpoint_plays_the_people(run, capsys):
    # A message for each number of turns so far; the second person says nothing, and the endpoint refuses the third.
    def plan(number, body):
        text = json.loads(body)["messages"][0]["content"]
        if SCRIPTS[2].turns[1] in text:
            return 400, "{}"
        lines = text.count("Supporter: ")
        return 200, completion("" if SCRIPTS[1].turns[1] in text else f'You: "It is day {lines}."\nSupporter: Oh.')

    with serving(plan) as (server, url):
        play(run, url)
        # Three requests a person, and the first one to see that the endpoint answers.
        assert len(server.received) == 1 + 3 * 3
        before = spoken()
        play(run, url)
        assert len(server.received) == 10 and spoken() == before
    first, second, third = spoken()
    assert first == [SCRIPTS[0].turns[0], "It is day 1.", "It is day 2.", "It is day 3."]
    assert [
        text.endswith(turn) for text, turn in zip(second + third, SCRIPTS[1].turns + SCRIPTS[2].turns, strict=True)
    ] == [True] * 8
    signature = json.loads(Path("metrics/converse/sft-dpo.signature.json").read_text())
    assert signature["converse_scripted"] == "6 of 9 messages, which it did not give"
    assert (
        signature["converse_seeker"].startswith("m at http://127.0.0.1:") and "sha256" in signature["converse_prompt"]
    )
    told = capsys.readouterr().out
    assert told.startswith("m plays 3 people in at most 10 requests, fewer where answers are cached: about ")
    params = replace(run, probed=run.variants, converse=factory.converse(seeker="endpoint"))
    parts = transcripts(read_conversations(params), 13, True)
    assert "Conversations with played people" in parts[0] and "**Written by a machine, too:** It is day 1" in "".join(
        parts
    )


def test_an_endpoint_that_dies_half_way(run):
    def dying(number, body):
        return (500, "{}") if number == 6 else (200, completion("And then?"))

    with serving(dying) as (server, url):
        with pytest.raises(UserError, match=r"does not answer .*: its answers are cached: run the same command again"):
            play(run, url)
        assert not Path("data/scores/converse").exists()
        play(run, url)
        assert len(server.received) == 11 and spoken()[2][1:] == ["And then?"] * 3


@pytest.mark.parametrize(
    ("changes", "plan", "error"),
    [
        ({}, lambda number, body: (401, "{}"), r"does not answer .* check the address, the name of the model, 'm'"),
        ({"converse": factory.converse(seeker="endpoint", base_url="http://127.0.0.1:9/v1")}, None, "does not answer"),
        ({"converse": factory.converse(seeker="endpoint", prompt="README.md")}, None, "must have .*story and no other"),
        ({"endpoint": factory.endpoint(key_variable="NO_SUCH_KEY")}, None, "variable NO_SUCH_KEY is not set"),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_told_before_a_model_is_loaded(run, changes, plan, error):
    shutil.rmtree("models")
    Path("README.md").write_text("a text")
    with serving(plan) as (_, url), pytest.raises(UserError, match=error):
        play(run, url, **changes)
