"""Pairs by the quality of counselling: who is on which side, how close the two are, what a draw depends on."""

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
from attune.data.examples import examples as one_by_one
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


def an_example(name, topic, talk, quality="high", act=None, target=None):
    client = Turn("user", f"I say {name}.", talk)
    return Example(name, topic, (client,), target or f"Reply {name}.", act, quality)


def examples(count, quality="high", topics=TOPICS, talks=TALKS):
    return [
        an_example(f"{quality}/{i:04d}", topics[i % len(topics)], talks[i // 2 % len(talks)], quality)
        for i in range(count)
    ]


HIGH, LOW = examples(240), examples(60, "low")
POOL = group_by_match(LOW)


def made(some, pool=POOL, seed=13, epoch=1):
    return counselling_pairs(some, pool, seed=seed, epoch=epoch)


def settings(limit=None, rule="counselling"):
    base = load(ROOT / "params.yaml")
    rounds = {f"e{i}": factory.dpo_round(init=f"models/dpo/e{i - 1}") for i in (1, 2)}
    pairs = replace(base.pairs, rule=rule, table=str(TABLE), limit=limit)
    return replace(base, pairs=pairs, rounds=rounds, context=factory.context(targets="every"))


def test_the_table_has_a_row_for_every_label_of_the_miti_code():
    named = Counter(ADHERENT.values())
    assert set(named) == set(ADHERENCE) and (named["adherent"], named["non-adherent"]) == (7, 4)
    assert (ADHERENT["Support"], ADHERENT["Warn"], ADHERENT["Closed Question"]) == (*ADHERENCE[:2], "neither")


def test_a_sessions_quality_decides_and_without_one_the_act():
    some = [
        an_example("a", "x", None, None, "Affirm"),
        an_example("b", "x", None, None, "Confront"),
        an_example("c", "x", None, None, "Give Information"),
        an_example("d", "x", None, None, None),
        an_example("e", "x", None, "low", "Affirm"),
        an_example("f", "x", None, "high", "question"),
    ]
    chosen, rejected = sides(some[::-1], ADHERENT)
    assert ([e.id for e in chosen], [e.id for e in rejected]) == (["a", "f"], ["b", "e"])
    with pytest.raises(DataError, match=r"^pairs\.table has no row for 1 acts of the corpus: 'Hug' \(1\)"):
        sides([an_example("a", "x", None, None, "Hug")], ADHERENT)


@pytest.mark.parametrize(
    ("rejected", "match"),
    [
        ([("smoking", "change"), ("smoking", "neutral"), ("gambling", "change")], "topic_and_talk"),
        ([("gambling", "change"), ("smoking", "neutral"), ("diet", "sustain")], "topic"),
        ([("diet", "sustain"), ("gambling", "change")], "talk"),
        ([("diet", "sustain"), ("diet", None)], "none"),
    ],
)
def test_the_closest_match_is_taken(rejected, match):
    low = [an_example(f"low/{i}", topic, talk, "low") for i, (topic, talk) in enumerate(rejected)]
    (pair,) = made([an_example("high/0", "smoking", "change")], group_by_match(low))
    own = {"topic_and_talk": "smoking", "topic": "smoking", "talk": "gambling", "none": "diet"}[match]
    assert (pair.match, pair.rejected_label) == (match, own)


def test_without_a_talk_type_topics_alone_are_matched():
    low = [an_example("low/0", "diet", None, "low"), an_example("low/1", "smoking", None, "low")]
    pairs = made([an_example("a", "smoking", None), an_example("b", "gambling", None)], group_by_match(low))
    assert [(pair.match, pair.id) for pair in pairs] == [("topic", "a"), ("none", "b")]


def an_answer(name, post, act, source="forum"):
    """An answer to a post of a corpus with labels of the MITI code, whose label is where the post comes from."""
    return Example(name, source, (Turn("user", post),), f"Answer {name}.", act)


def test_answers_to_one_post_are_matched_before_those_of_one_source():
    low = [
        an_answer("low/0", "I cannot sleep.", "Warn"),
        an_answer("low/1", "I drink.", "Direct"),
        an_answer("low/2", "I shout.", "Confront", source="other forum"),
    ]
    chosen = [
        an_answer("a", "i cannot  SLEEP!", "Support"),
        an_answer("b", "I worry.", "Affirm", source="other forum"),
        an_answer("c", "I worry.", "Affirm", source="a third one"),
    ]
    pairs = made(chosen, group_by_match(low))
    assert [pair.match for pair in pairs] == ["post", "source", "none"]
    assert [pair.rejected_id for pair in pairs[:2]] == ["low/0", "low/2"]
    later = replace(chosen[0], context=(*chosen[0].context, Turn("assistant", "Oh."), Turn("user", "For weeks.")))
    assert made([later], group_by_match(low))[0].match == "post"


def test_judged_sessions_and_answers_to_posts_meet_only_where_nothing_else_is_left():
    session = an_example("low/0", "smoking", "change", "low")
    one = an_answer("a", session.context[0].text, "Support", source="smoking")
    assert [pair.match for pair in made([one], group_by_match([session]))] == ["none"]
    answer = an_answer("low/1", session.context[0].text, "Warn", source="smoking")
    assert [pair.match for pair in made([replace(session, quality="high")], group_by_match([answer]))] == ["none"]


@pytest.mark.corpora
def test_four_in_ten_pairs_of_counsel_chat_answer_one_post(corpora_dir):
    dialogues, _ = read_corpus(corpora_dir / "mi", "mi", file="boosting_CC_Augmented.csv", columns=COUNSEL_CHAT)
    chosen, rejected = sides([one for d in dialogues for one in one_by_one([d], "every", 7)], ADHERENT)
    pairs = made(chosen, group_by_match(rejected))
    posts = {one.id: normalise(one.context[0].text) for one in rejected}
    assert all((pair.match == "post") is (posts[pair.rejected_id] == normalise(pair.prompt[0].text)) for pair in pairs)
    counts = match_counts(pairs)
    assert (counts["match_post_pairs"], counts["match_source_pairs"], len(pairs)) == (81, 108, 189)


def test_a_match_that_says_the_same_is_passed_over():
    same = an_example("low/0", "smoking", "change", "low", target="Oh, NO!")
    other = an_example("low/1", "smoking", "neutral", "low")
    one = an_example("high/0", "smoking", "change", target="oh no")
    (pair,) = made([one], group_by_match([same, other]))
    assert (pair.rejected_id, pair.match) == ("low/1", "topic")
    assert made([one], group_by_match([same])) == []
    pool = group_by_match([replace(same, id=f"low/{i}") for i in range(90)] + [replace(other, context=same.context)])
    assert made([one], pool)[0].rejected == other.target


def test_order_part_and_pool_order_do_not_matter():
    whole = made(HIGH)
    mixed = random.Random(1).sample(HIGH, len(HIGH))
    assert made(mixed, group_by_match(random.Random(2).sample(LOW, len(LOW)))) == whole
    assert made(HIGH[50:90]) == [pair for pair in whole if pair.id in {e.id for e in HIGH[50:90]}]
    assert [pair.id for pair in whole] == [one.id for one in HIGH]


def test_every_epoch_and_seed_draws_anew_and_uniformly():
    first, second, other = made(HIGH), made(HIGH, epoch=2), made(HIGH, seed=14)
    for drawn in (second, other):
        equal = sum(a.rejected_id == b.rejected_id for a, b in zip(first, drawn, strict=True))
        assert 0 < equal < 60  # ten candidates each: 24 expected, five standard deviations are 23
    asking = [an_example(f"high/{i}", "smoking", "change") for i in range(3000)]
    counts = Counter(pair.rejected_id for pair in made(asking))
    assert len(counts) == 10 and min(counts.values()) > 200 and max(counts.values()) < 400


def test_a_pair_holds_what_it_says():
    low = {one.id: one for one in LOW}
    for pair, one in zip(made(HIGH, epoch=3), HIGH, strict=True):
        other = low[pair.rejected_id]
        assert (pair.chosen, pair.prompt, pair.label, pair.epoch) == (one.target, one.context, one.label, 3)
        assert (pair.rejected, pair.rejected_label) == (other.target, other.label)
        assert pair.match == "topic_and_talk" and other.context[-1].act == one.context[-1].act
        assert normalise(pair.chosen) != normalise(pair.rejected)


def test_shares_of_the_matches_by_hand():
    some = [
        an_example("a", "smoking", "change"),
        an_example("b", "smoking", None),
        an_example("c", "x", "change"),
        an_example("d", "x", None),
    ]
    there = ("topic_and_talk", "topic", "talk", "none")
    assert match_counts(made(some)) == {
        f"match_{name}{end}": value * (name in there) for end, value in (("", 25.0), ("_pairs", 1)) for name in MATCHES
    }


def test_metrics_and_the_part_that_trains():
    pairs, found = counselling([*HIGH, *LOW], settings(limit=40), 2)
    assert (len(pairs), found["pairs"], found["candidates"], found["dropped"]) == (40, 40, 60, 0)
    assert {pair.id for pair in pairs} < {one.id for one in HIGH}
    assert found["match_topic_and_talk"] == 100 and found["label_coverage"] == 100
    first = {pair.id: pair for pair in counselling([*HIGH, *LOW], settings(limit=40), 1)[0]}
    again = sum(first[pair.id].rejected == pair.rejected for pair in pairs)
    assert found["repeated_rejected"] == 100 * again / 40
    with pytest.raises(
        DataError, match=r"^no pair was made of 240 train examples: 240 are of high .* 0 of low quality"
    ):
        counselling(HIGH, settings(), 1)


def test_the_stage_draws_from_the_train_split_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "valid", "test"):
        some = [
            Dialogue(
                f"{split}/{i}", "annomi", split, TOPICS[i % 2],
                (Turn("user", "I do.", TALKS[i % 3]), Turn("assistant", f"Said {i} in {split}.", "question")),
                "low" if i < 6 else "high",
            )
            for i in range(24)
        ]  # fmt: skip
        write_dialogues(some, Path(f"data/dialogues/{split}.parquet"))
    main("e2", settings())
    rows = pq.read_table("data/pairs/e2.parquet").to_pylist()
    assert len(rows) == 18 and {row["match"] for row in rows} <= set(MATCHES)
    assert all("in train" in row["chosen"] and "in train" in row["rejected"] for row in rows)
    found = json.loads(Path("metrics/pairs/e2.json").read_text(encoding="utf-8"))
    assert sum(found[f"match_{name}"] for name in MATCHES) == pytest.approx(100, abs=0.01)
    assert found["pairs"] == 18 and found["candidates"] == 6


def test_held_out_pairs_are_of_the_same_rule():
    pairs = held_out_pairs(HIGH[:20] + LOW[:5], [*HIGH, *LOW], settings())
    assert [pair.id for pair in pairs] == [one.id for one in HIGH[:20]]
    assert {pair.epoch for pair in pairs} == {0} and {pair.rejected_id for pair in pairs} <= {e.id for e in LOW}
