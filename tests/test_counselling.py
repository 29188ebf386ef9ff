"""Pairs by the quality of counselling: sides, matches, keys of the draws, the stage."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import factory
import pyarrow.parquet as pq
import pytest

from attune.config.params import load
from attune.corpora.readers.registry import read_corpus
from attune.data.dialogue import Dialogue, Example, Turn, normalise, write_dialogues
from attune.data.examples import examples as examples_of
from attune.labels.miti import ADHERENCE, read_adherence
from attune.pairs.build import counselling
from attune.pairs.counselling import MATCHES, counselling_pairs, group_by_match, match_counts, sides
from attune.pairs.held_out import held_out_pairs
from attune.runtime.errors import DataError
from stages.pairs import main

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "data/miti_adherence.csv"
ADHERENT = read_adherence(TABLE)
TALKS = ("change", "neutral", "sustain")
TOPICS = ("smoking", "alcohol")
COUNSEL_CHAT = factory.columns(
    dialogue="dialog_id", turn="turn", role="author", text="text", act="Union (without disambiguities)"
)


def example(name, topic, talk, quality="high", act=None, target=None):
    client = Turn("user", f"I say {name}.", talk)
    return Example(name, topic, (client,), target or f"Reply {name}.", act, quality)


def examples(count, quality="high", topics=TOPICS, talks=TALKS):
    return [
        example(f"{quality}/{i:04d}", topics[i % len(topics)], talks[i // 2 % len(talks)], quality)
        for i in range(count)
    ]


HIGH, LOW = examples(240), examples(60, "low")
POOL = group_by_match(LOW)


def pairs_of(some, pool=POOL, seed=13, epoch=1):
    return counselling_pairs(some, pool, seed=seed, epoch=epoch)


def settings(limit=None, rule="counselling"):
    base = load(ROOT / "params.yaml")
    rounds = {"e1": factory.dpo_round(), "e2": factory.dpo_round(init="models/dpo/e1")}
    return replace(
        base,
        pairs=replace(base.pairs, rule=rule, table=str(TABLE), limit=limit),
        rounds=rounds,
        context=factory.context(targets="every"),
    )


def test_table_has_every_label_of_the_miti_code():
    named = Counter(ADHERENT.values())
    assert set(named) == set(ADHERENCE) and (named["adherent"], named["non-adherent"]) == (7, 4)
    assert (ADHERENT["Support"], ADHERENT["Warn"], ADHERENT["Closed Question"]) == (*ADHERENCE[:2], "neither")


def test_sides_by_quality_or_else_by_act():
    some = [
        example("a", "x", None, None, "Affirm"),
        example("b", "x", None, None, "Confront"),
        example("c", "x", None, None, "Give Information"),
        example("d", "x", None, None, None),
        example("e", "x", None, "low", "Affirm"),
        example("f", "x", None, "high", "question"),
    ]
    chosen, rejected = sides(some[::-1], ADHERENT)
    assert ([e.id for e in chosen], [e.id for e in rejected]) == (["a", "f"], ["b", "e"])
    with pytest.raises(DataError, match=r"^pairs\.table has no row for 1 acts of the corpus: 'Hug' \(1\)"):
        sides([example("a", "x", None, None, "Hug")], ADHERENT)


@pytest.mark.parametrize(
    ("rejected", "match"),
    [
        ([("smoking", "change"), ("smoking", "neutral"), ("gambling", "change")], "topic_and_talk"),
        ([("gambling", "change"), ("smoking", "neutral"), ("diet", "sustain")], "topic"),
        ([("diet", "sustain"), ("gambling", "change")], "talk"),
        ([("diet", "sustain"), ("diet", None)], "none"),
    ],
)
def test_closest_match_is_taken(rejected, match):
    low = [example(f"low/{i}", topic, talk, "low") for i, (topic, talk) in enumerate(rejected)]
    (pair,) = pairs_of([example("high/0", "smoking", "change")], group_by_match(low))
    label = {"topic_and_talk": "smoking", "topic": "smoking", "talk": "gambling", "none": "diet"}[match]
    assert (pair.match, pair.rejected_label) == (match, label)


def test_without_a_talk_type_only_topics_match():
    low = [example("low/0", "diet", None, "low"), example("low/1", "smoking", None, "low")]
    pairs = pairs_of([example("a", "smoking", None), example("b", "gambling", None)], group_by_match(low))
    assert [(pair.match, pair.id) for pair in pairs] == [("topic", "a"), ("none", "b")]


def answer(name, post, act, source="forum"):
    """An example of a corpus without ratings, whose label is the source of the post."""
    return Example(name, source, (Turn("user", post),), f"Answer {name}.", act)


def test_same_post_matches_before_same_source():
    low = [
        answer("low/0", "I cannot sleep.", "Warn"),
        answer("low/1", "I drink.", "Direct"),
        answer("low/2", "I shout.", "Confront", source="other forum"),
    ]
    chosen = [
        answer("a", "i cannot  SLEEP!", "Support"),
        answer("b", "I worry.", "Affirm", source="other forum"),
        answer("c", "I worry.", "Affirm", source="a third one"),
    ]
    pairs = pairs_of(chosen, group_by_match(low))
    assert [pair.match for pair in pairs] == ["post", "source", "none"]
    assert [pair.rejected_id for pair in pairs[:2]] == ["low/0", "low/2"]
    later = replace(chosen[0], context=(*chosen[0].context, Turn("assistant", "Oh."), Turn("user", "For weeks.")))
    assert pairs_of([later], group_by_match(low))[0].match == "post"


def test_sessions_and_posts_match_only_as_none():
    session = example("low/0", "smoking", "change", "low")
    chosen = answer("a", session.context[0].text, "Support", source="smoking")
    assert [pair.match for pair in pairs_of([chosen], group_by_match([session]))] == ["none"]
    post = answer("low/1", session.context[0].text, "Warn", source="smoking")
    assert [pair.match for pair in pairs_of([replace(session, quality="high")], group_by_match([post]))] == ["none"]


@pytest.mark.corpora
def test_matches_of_counsel_chat(corpora_dir):
    dialogues, _ = read_corpus(corpora_dir / "mi", "mi", file="boosting_CC_Augmented.csv", columns=COUNSEL_CHAT)
    chosen, rejected = sides(examples_of(dialogues, "every", 7), ADHERENT)
    pairs = pairs_of(chosen, group_by_match(rejected))
    posts = {e.id: normalise(e.context[0].text) for e in rejected}
    assert all((pair.match == "post") is (posts[pair.rejected_id] == normalise(pair.prompt[0].text)) for pair in pairs)
    counts = match_counts(pairs)
    assert (counts["match_post_pairs"], counts["match_source_pairs"], len(pairs)) == (81, 108, 189)


def test_match_with_the_same_text_is_skipped():
    same = example("low/0", "smoking", "change", "low", target="Oh, NO!")
    other = example("low/1", "smoking", "neutral", "low")
    chosen = example("high/0", "smoking", "change", target="oh no")
    (pair,) = pairs_of([chosen], group_by_match([same, other]))
    assert (pair.rejected_id, pair.match) == ("low/1", "topic")
    assert pairs_of([chosen], group_by_match([same])) == []
    pool = group_by_match([replace(same, id=f"low/{i}") for i in range(90)] + [replace(other, context=same.context)])
    assert pairs_of([chosen], pool)[0].rejected == other.target


def test_pairs_do_not_depend_on_order_or_subset():
    whole = pairs_of(HIGH)
    mixed = random.Random(1).sample(HIGH, len(HIGH))
    assert pairs_of(mixed, group_by_match(random.Random(2).sample(LOW, len(LOW)))) == whole
    assert pairs_of(HIGH[50:90]) == [pair for pair in whole if pair.id in {e.id for e in HIGH[50:90]}]
    assert [pair.id for pair in whole] == [e.id for e in HIGH]


def test_epochs_and_seeds_draw_independently_and_uniformly():
    first, second, other = pairs_of(HIGH), pairs_of(HIGH, epoch=2), pairs_of(HIGH, seed=14)
    for drawn in (second, other):
        equal = sum(a.rejected_id == b.rejected_id for a, b in zip(first, drawn, strict=True))
        assert 0 < equal < 60  # ten candidates each: 24 expected, five standard deviations are 23
    asked = [example(f"high/{i}", "smoking", "change") for i in range(3000)]
    counts = Counter(pair.rejected_id for pair in pairs_of(asked))
    assert len(counts) == 10 and min(counts.values()) > 200 and max(counts.values()) < 400


def test_fields_of_a_pair():
    low = {e.id: e for e in LOW}
    for pair, chosen in zip(pairs_of(HIGH, epoch=3), HIGH, strict=True):
        rejected = low[pair.rejected_id]
        assert (pair.chosen, pair.prompt, pair.label, pair.epoch) == (chosen.target, chosen.context, chosen.label, 3)
        assert (pair.rejected, pair.rejected_label) == (rejected.target, rejected.label)
        assert pair.match == "topic_and_talk" and rejected.context[-1].act == chosen.context[-1].act
        assert normalise(pair.chosen) != normalise(pair.rejected)


def test_match_counts_by_hand():
    some = [
        example("a", "smoking", "change"),
        example("b", "smoking", None),
        example("c", "x", "change"),
        example("d", "x", None),
    ]
    rated = MATCHES[2:]
    assert match_counts(pairs_of(some)) == {
        f"match_{name}{end}": value * (name in rated) for end, value in (("", 25.0), ("_pairs", 1)) for name in MATCHES
    }


def test_metrics_and_limit():
    pairs, metrics = counselling([*HIGH, *LOW], settings(limit=40), 2)
    assert (len(pairs), metrics["pairs"], metrics["candidates"], metrics["dropped"]) == (40, 40, 60, 0)
    assert {pair.id for pair in pairs} < {e.id for e in HIGH}
    assert metrics["match_topic_and_talk"] == 100 and metrics["label_coverage"] == 100
    first = {pair.id: pair for pair in counselling([*HIGH, *LOW], settings(limit=40), 1)[0]}
    again = sum(first[pair.id].rejected == pair.rejected for pair in pairs)
    assert metrics["repeated_rejected"] == 100 * again / 40
    with pytest.raises(
        DataError, match=r"^no pair was made of 240 train examples: 240 are of high .* 0 of low quality"
    ):
        counselling(HIGH, settings(), 1)


def test_stage_draws_from_train_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "valid", "test"):
        some = [
            Dialogue(
                f"{split}/{i}", "annomi", split, TOPICS[i % 2],
                (Turn("user", "I do.", TALKS[i % 3]), Turn("assistant", f"Reply {i} in {split}.", "question")),
                "low" if i < 6 else "high",
            )
            for i in range(24)
        ]  # fmt: skip
        write_dialogues(some, Path(f"data/dialogues/{split}.parquet"))
    main("e2", settings())
    rows = pq.read_table("data/pairs/e2.parquet").to_pylist()
    assert len(rows) == 18 and {row["match"] for row in rows} <= set(MATCHES)
    assert all("in train" in row["chosen"] and "in train" in row["rejected"] for row in rows)
    metrics = json.loads(Path("metrics/pairs/e2.json").read_text(encoding="utf-8"))
    assert sum(metrics[f"match_{name}"] for name in MATCHES) == pytest.approx(100, abs=0.01)
    assert metrics["pairs"] == 18 and metrics["candidates"] == 6


def test_held_out_pairs_use_the_rule():
    pairs = held_out_pairs(HIGH[:20] + LOW[:5], [*HIGH, *LOW], settings())
    assert [pair.id for pair in pairs] == [e.id for e in HIGH[:20]]
    assert {pair.epoch for pair in pairs} == {0} and {pair.rejected_id for pair in pairs} <= {e.id for e in LOW}
