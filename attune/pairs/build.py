"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from attune.config.schema import Params, Round
from attune.data.dialogue import Example
from attune.data.keyed import random_part
from attune.data.pair import Pair
from attune.labels.miti import read_adherence
from attune.pairs.counselling import MatchedPair, counselling_pairs, group_by_match, match_counts, sides
from attune.pairs.dbt import Judge, ScoredPair, Source, classifier_judge, scored_pairs
from attune.pairs.dbt_candidates import corpus_source, policy_source
from attune.pairs.dbt_llm import llm_judge, llm_source
from attune.pairs.metrics import describe, measures, percent, repeated, scores
from attune.pairs.opposite_emotion import read_opposites
from attune.pairs.opposite_emotion_stream import Epoch, write_epoch
from attune.pairs.rules import rule_of
from attune.runtime.errors import DataError

BASE = Path("models/base")
TRAIN = Path("data/dialogues/train.parquet")
P = TypeVar("P", bound=Pair)


def opposite_emotion(params: Params, epoch: int, target: Path, work: Path) -> dict[str, float]:
    """Write the pairs of an epoch by EmPO's rule to `target`, and give their metrics; `work` is a folder for them.

    Raises:
        DataError: a label has no opposite, an opposite no replies, or no pair is left.
    """
    opposites = read_opposites(Path(params.pairs.table))
    context, limit = params.context, params.pairs.limit
    later = future_epochs(epoch, params)
    draws = Epoch(TRAIN, context.targets, context.max_turns, opposites, limit, params.seed, epoch, later)
    counts = write_epoch(draws, target, work)
    return measures(counts, len(opposites)) | {
        "repeated_rejected": percent(counts["repeated_rejected"], counts["pairs"])
    }


def counselling(train: Sequence[Example], params: Params, epoch: int) -> tuple[list[MatchedPair], dict[str, float]]:
    """The pairs of an epoch by the quality of counselling, and their metrics.

    Raises:
        DataError: no reply can be chosen, or none is left that can be rejected.
        DataError: the table of adherence lacks an act.
    """
    chosen, rejected = sides(train, read_adherence(Path(params.pairs.table)))
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
        DataError: no example has candidates that are `pairs.margin` apart.
    """
    part = random_part(train, params.pairs.limit, params.seed)
    source, judge = source_of(one, train, params, epoch), judge_of(one, params)
    pairs, malformed = scored_pairs(
        part, source, judge, name=one.source(params.llm), margin=params.pairs.margin, epoch=epoch
    )
    if not pairs:
        raise DataError(
            f"no pair was made of {len(part)} examples ({malformed} malformed answers): none has two candidates of "
            f"source {one.source(params.llm)} that are more than pairs.margin = {params.pairs.margin:g} apart"
        )
    return pairs, describe(part, pairs, len({e.label for e in part})) | scores(pairs) | {"malformed": malformed}


def source_of(one: Round, train: Sequence[Example], params: Params, epoch: int) -> Source:
    """Where the candidates of round `one` come from."""
    match one.source(params.llm):
        case "llm":
            return llm_source(params.llm, params.endpoint, params.seed, epoch, answers_file())
        case "policy":
            room = params.dpo.max_length
            model = Path(one.candidates)
            return policy_source(BASE, model, params.pairs, room, params.hardware, params.seed, epoch)
        case _:
            return corpus_source(train, params.pairs.samples, params.seed, epoch)


def judge_of(one: Round, params: Params) -> Judge:
    """Who scores the candidates of round `one`."""
    if one.judged_by_llm(params.llm):
        return llm_judge(params.llm, params.endpoint, answers_file())
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
        DataError: the rule made none.
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
        DataError: no pair is made.
    """
    pairs = draw(epoch)
    if not pairs:
        raise DataError(nothing)
    earlier = [pair for one in range(1, epoch) for pair in draw(one)]
    metrics = describe(part, pairs, len({one.label for one in part})) | repeated(pairs, earlier)
    return with_future_rejected(pairs, [draw(later) for later in future_epochs(epoch, params)]), metrics


def with_future_rejected(pairs: Sequence[P], later: Sequence[Sequence[P]]) -> list[P]:
    """`pairs` with what later epochs reject behind the same contexts.

    Args:
        pairs: of the first epoch.
        later: of each of the others.
    """
    rejected = [{pair.id: pair.rejected for pair in one} for one in later]
    return [replace(pair, future_rejected=tuple(one[pair.id] for one in rejected if pair.id in one)) for pair in pairs]


def in_memory(
    train: Sequence[Example], params: Params, key: str, epoch: int
) -> tuple[Sequence[Pair | ScoredPair], dict[str, float]]:
    """The pairs of round `key` by a rule that looks at all examples at once, and their metrics."""
    match params.pairs.rule:
        case "dbt":
            return dbt(train, params, params.rounds[key], epoch)
        case "counselling":
            return counselling(train, params, epoch)
        case _:
            return by_own_rule(train, params, epoch)


def future_epochs(epoch: int, params: Params) -> range:
    """The epochs whose rejected replies the pairs of `epoch` are to name."""
    return range(2, params.dpo.epochs + 1) if epoch == 1 else range(0)
