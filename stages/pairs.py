"""Stage `pairs@eK`: the preference pairs of one epoch, made anew by the rule of `pairs.rule`.

    python -m stages.pairs e2

writes `data/pairs/e2.parquet` and `metrics/pairs/e2.json`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from stages.dialogues import Example, normalise, read_examples
from stages.errors import reported
from stages.files import write_json, write_table
from stages.params import load
from stages.preferences.counselling import MatchedPair, counselling_pairs, group_by_match, match_counts, sides
from stages.preferences.dbt import Judge, ScoredPair, Source, classifier_judge, scored_pairs
from stages.preferences.dbt_candidates import corpus_source, policy_source
from stages.preferences.dbt_llm import llm_judge, llm_source
from stages.preferences.epoch_draws import Epoch, write_epoch
from stages.preferences.opposite_emotion import Pair, PairError, random_part, read_opposites, schema_of
from stages.preferences.rules import rule_of
from stages.scoring.miti import read_adherence
from stages.sections import Params, Round, chain

BASE = Path("models/base")
TRAIN = Path("data/dialogues/train.parquet")
PAIRS = Path("data/pairs")
# What is in the way where a run was killed; Git ignores it.
WORK = Path("data/.pairs")
METRICS = Path("metrics/pairs")
P = TypeVar("P", bound=Pair)


def opposite_emotion(params: Params, epoch: int, target: Path, work: Path) -> dict[str, float]:
    """Write the pairs of an epoch by EmPO's rule to `target`, and give their metrics; `work` is a folder for them.

    Raises:
        PairError: a label has no opposite, an opposite no replies, or no pair is left.
    """
    opposites = read_opposites(Path(params.pairs.opposites))
    corpus, limit = params.corpus, params.pairs.limit
    ahead = ahead_of(epoch, params)
    draws = Epoch(TRAIN, corpus.targets, corpus.max_context_turns, opposites, limit, params.seed, epoch, ahead)
    counts = write_epoch(draws, target, work)
    return measures(counts, len(opposites)) | {
        "repeated_rejected": percent(counts["repeated_rejected"], counts["pairs"])
    }


def counselling(train: Sequence[Example], params: Params, epoch: int) -> tuple[list[MatchedPair], dict[str, float]]:
    """The pairs of an epoch by the quality of counselling, and their metrics.

    Raises:
        PairError: no reply can be chosen, or none is left that can be rejected.
        LabelError: the table of adherence lacks an act.
    """
    chosen, rejected = sides(train, read_adherence(Path(params.miti.adherence)))
    part, pool = random_part(chosen, params.pairs.limit, params.seed), group_by_match(rejected)
    nothing = (
        f"no pair was made of {len(train)} train examples: {len(chosen)} are of high quality or adherent, "
        f"{len(rejected)} of low quality or non-adherent, and both are needed"
    )
    pairs, metrics = drawn(
        part, lambda e: counselling_pairs(part, pool, seed=params.seed, epoch=e), epoch, params, nothing
    )
    return pairs, metrics | match_counts(pairs) | {"candidates": len(rejected)}


def dbt(train: Sequence[Example], params: Params, one: Round, epoch: int) -> tuple[list[ScoredPair], dict[str, float]]:
    """The pairs of round `one` by how well replies follow the stages of DBT, and their metrics.

    Raises:
        PairError: no example has candidates that are `pairs.margin` apart.
    """
    part = random_part(train, params.pairs.limit, params.seed)
    source, judge = source_of(one, train, params, epoch), judge_of(one, params)
    pairs, malformed = scored_pairs(part, source, judge, name=one.source, margin=params.pairs.margin, epoch=epoch)
    if not pairs:
        raise PairError(
            f"no pair was made of {len(part)} examples ({malformed} malformed answers): none has two candidates of "
            f"source {one.source} that are more than pairs.margin = {params.pairs.margin:g} apart"
        )
    return pairs, describe(part, pairs, len({e.label for e in part})) | scores(pairs) | {"malformed": malformed}


def source_of(one: Round, train: Sequence[Example], params: Params, epoch: int) -> Source:
    """Where the candidates of round `one` come from."""
    match one.source:
        case "llm":
            return llm_source(params.llm, params.seed, epoch, answers_file())
        case "policy":
            room = params.dpo.max_length
            model = Path(one.candidates)
            return policy_source(BASE, model, params.pairs, room, params.hardware, params.seed, epoch)
        case _:
            return corpus_source(train, params.pairs.samples, params.seed, epoch)


def judge_of(one: Round, params: Params) -> Judge:
    """Who scores the candidates of round `one`."""
    if params.pairs.judge == "llm":
        return llm_judge(params.llm, answers_file())
    return classifier_judge(Path(one.scorer), params.hardware)


def answers_file() -> Path:
    """Where an endpoint's answers are kept: in a folder of their own in DVC's cache.

    The temporary workspaces of experiments share that cache, so that none asks, and pays, for what another one has; and
    `dvc gc` removes only what DVC has put there itself.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        return Path(repo.cache.local_cache_dir) / "llm" / "answers.sqlite"


def by_own_rule(train: Sequence[Example], params: Params, epoch: int) -> tuple[list[Pair], dict[str, float]]:
    """The pairs of an epoch by the rule of a module of one's own, and their metrics.

    Raises:
        PairError: the rule made none.
    """
    part, build = random_part(train, params.pairs.limit, params.seed), rule_of(params.pairs.rule)
    nothing = f"no pair was made of {len(part)} examples by pairs.rule = {params.pairs.rule!r}"
    return drawn(part, lambda e: build(part, train, params, e), epoch, params, nothing)


def drawn(
    part: Sequence[Example], draw: Callable[[int], Sequence[P]], epoch: int, params: Params, nothing: str
) -> tuple[list[P], dict[str, float]]:
    """The pairs of an epoch by a rule whose draws hang on data alone, and their metrics.

    Args:
        part: the examples that are drawn for.
        draw: the pairs of an epoch, given its number.
        epoch: from 1.
        params: the run's.
        nothing: what is wrong where no pair is made.

    Raises:
        PairError: no pair is made.
    """
    pairs = draw(epoch)
    if not pairs:
        raise PairError(nothing)
    earlier = [pair for one in range(1, epoch) for pair in draw(one)]
    metrics = describe(part, pairs, len({one.label for one in part})) | repeated(pairs, earlier)
    return with_ahead(pairs, [draw(later) for later in ahead_of(epoch, params)]), metrics


def with_ahead(pairs: Sequence[P], later: Sequence[Sequence[P]]) -> list[P]:
    """`pairs` with what later epochs reject behind the same contexts.

    Args:
        pairs: of the first epoch.
        later: of each of the others.
    """
    rejected = [{pair.id: pair.rejected for pair in one} for one in later]
    return [replace(pair, ahead=tuple(one[pair.id] for one in rejected if pair.id in one)) for pair in pairs]


def describe(examples: Sequence[Example], pairs: Sequence[Pair | ScoredPair], labels: int) -> dict[str, float]:
    """Metrics of an epoch's pairs, of `labels` labels."""
    words = [(len(p.chosen.split()), len(p.rejected.split())) for p in pairs]
    counts = Counter(
        asked=len(examples),
        pairs=len(pairs),
        labels=len({p.label for p in pairs}),
        chosen_words=sum(c for c, _ in words),
        rejected_words=sum(r for _, r in words),
        longer_rejected=sum(r > c for c, r in words),
    )
    return measures(counts, labels)


def measures(counts: Counter[str], labels: int) -> dict[str, float]:
    """Metrics from the counts of `write_epoch`; shares in percent, lengths in words.

    `longer_rejected` is the share of pairs whose rejected reply is the longer one: far from 50 it is a bias that a
    model can learn instead of the preference.
    """
    n = counts["pairs"]
    return {
        "pairs": n,
        "dropped": percent(counts["asked"] - n, counts["asked"]),
        "label_coverage": percent(counts["labels"], labels),
        "chosen_words": round(counts["chosen_words"] / n, 4),
        "rejected_words": round(counts["rejected_words"] / n, 4),
        "longer_rejected": percent(counts["longer_rejected"], n),
    }


def percent(part: int, whole: int) -> float:
    """The share in percent, as metrics have it."""
    return round(100 * part / whole, 4)


def repeated(pairs: Sequence[Pair], earlier: Sequence[Pair]) -> dict[str, float]:
    """The share, in percent, whose rejected reply is one that an earlier epoch drew for the same dialogue."""
    drawn_before = {(p.id, normalise(p.rejected)) for p in earlier}
    times = sum((p.id, normalise(p.rejected)) in drawn_before for p in pairs)
    return {"repeated_rejected": percent(times, len(pairs))}


def scores(pairs: Sequence[ScoredPair]) -> dict[str, float]:
    """The mean scores of both sides, x 100."""
    sides = {
        "chosen_score": [p.chosen_score for p in pairs],
        "rejected_score": [p.rejected_score for p in pairs],
    }
    return {name: round(100 * sum(values) / len(values), 4) for name, values in sides.items()}


def write_pairs(pairs: Sequence[Pair | ScoredPair], path: Path) -> None:
    """Parquet with the fields of the pairs."""
    import pyarrow as pa

    write_table(path, pa.Table.from_pylist([asdict(pair) for pair in pairs], schema=schema_of(type(pairs[0]))))


def main(key: str, params: Params) -> None:
    """Write the pairs of round `key` and their metrics.

    Where draws hang on data alone, the first round's pairs know what all epochs of `dpo.epochs` reject.
    """
    target, epoch = PAIRS / f"{key}.parquet", len(chain(params.dpo.rounds, key))
    if params.pairs.rule == "opposite_emotion":
        metrics = opposite_emotion(params, epoch, target, WORK / key)
    else:
        pairs, metrics = in_memory(read_examples(TRAIN, params.corpus), params, key, epoch)
        write_pairs(pairs, target)
    write_json(METRICS / f"{key}.json", metrics)


def in_memory(
    train: Sequence[Example], params: Params, key: str, epoch: int
) -> tuple[Sequence[Pair | ScoredPair], dict[str, float]]:
    """The pairs of round `key` by a rule that looks at all examples at once, and their metrics."""
    match params.pairs.rule:
        case "dbt":
            return dbt(train, params, params.dpo.rounds[key], epoch)
        case "counselling":
            return counselling(train, params, epoch)
        case _:
            return by_own_rule(train, params, epoch)


def ahead_of(epoch: int, params: Params) -> range:
    """The epochs whose rejected replies the pairs of `epoch` are to name."""
    return range(2, params.dpo.epochs + 1) if epoch == 1 else range(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("round", help="a key of dpo.rounds")
    with reported():
        main(parser.parse_args().round, load())
