"""The pairs of an epoch of DPO and their metrics, by the rule in `pairs.rule`.

Rule `opposite_emotion` streams its examples and writes the pairs itself; the other rules get all examples in memory.
Pairs whose draws depend only on data can be made for any epoch at any time: those of the first epoch list the rejected
replies of the later ones (`future_rejected`), and `repeated_rejected` compares an epoch with the earlier ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from attune.config.schema import Params, Round
from attune.data.dialogue import Example
from attune.data.keyed import random_subset
from attune.data.pair import Pair
from attune.labels.miti import read_adherence
from attune.labels.opposites import read_opposites
from attune.pairs.candidates import corpus_source, policy_source
from attune.pairs.counselling import MatchedPair, counselling_pairs, group_by_match, match_counts, sides
from attune.pairs.dbt import dbt_judge
from attune.pairs.dbt_llm import llm_judge, llm_source
from attune.pairs.endpoint import answers_file
from attune.pairs.epitome import epitome_judge
from attune.pairs.file import read_preferences
from attune.pairs.instruction import instructed_examples, instruction_of
from attune.pairs.metrics import describe, measures, percent, repeated, scores
from attune.pairs.opposite_emotion_stream import Epoch, write_epoch
from attune.pairs.policy import policy_pairs
from attune.pairs.ranked import Judge, ScoredPair, Source, scored_pairs
from attune.pairs.rules import rule_of
from attune.runtime.errors import DataError

BASE = Path("models/base")
TRAIN = Path("data/dialogues/train.parquet")
P = TypeVar("P", bound=Pair)


def opposite_emotion(params: Params, epoch: int, target: Path, work: Path) -> dict[str, float]:
    """Write the pairs of an epoch by EmPO's rule to `target`, and return their metrics.

    Args:
        params: of the run.
        epoch: from 1.
        target: parquet file.
        work: scratch directory.

    Raises:
        DataError: a label has no opposite, an opposite has no replies, or no example has a pair.
    """
    opposites = read_opposites(Path(params.pairs.table))
    context, limit = params.context, params.pairs.limit
    later = future_epochs(epoch, params)
    instruction = instruction_of(params.pairs)
    draws = Epoch(TRAIN, context.targets, context.max_turns, opposites, limit, params.seed, epoch, later, instruction)
    counts = write_epoch(draws, target, work)
    return measures(counts, len(opposites)) | {
        "repeated_rejected": percent(counts["repeated_rejected"], counts["pairs"])
    }


def in_memory(
    train: Sequence[Example], params: Params, key: str, epoch: int
) -> tuple[Sequence[Pair | ScoredPair], dict[str, float]]:
    """The pairs of round `key` by any other rule that makes them of dialogues, and their metrics.

    Args:
        train: all examples of the train split.
        params: of the run.
        key: in `rounds`.
        epoch: of the draws, from 1.

    Raises:
        DataError: no pair can be made.
    """
    match params.pairs.rule:
        case "dbt" | "epitome":
            return ranked(train, params, params.rounds[key], epoch)
        case "counselling":
            return counselling(train, params, epoch)
        case "policy":
            return policy(train, params, params.rounds[key], epoch)
        case _:
            return by_module(train, params, epoch)


def counselling(train: Sequence[Example], params: Params, epoch: int) -> tuple[list[MatchedPair], dict[str, float]]:
    """The pairs of an epoch by the quality of counselling, and their metrics.

    Raises:
        DataError: no reply can be chosen or none rejected, or the table of adherence lacks an act.
    """
    chosen, rejected = sides(train, read_adherence(Path(params.pairs.table), "pairs.table"))
    subset, pool = random_subset(chosen, params.pairs.limit, params.seed), group_by_match(rejected)
    error = (
        f"no pair was made of {len(train)} train examples: {len(chosen)} are of high quality or adherent, "
        f"{len(rejected)} of low quality or non-adherent, and both are needed"
    )
    pairs, metrics = with_other_epochs(
        subset, lambda number: counselling_pairs(subset, pool, seed=params.seed, epoch=number), epoch, params, error
    )
    return pairs, metrics | match_counts(pairs) | {"candidates": len(rejected)}


def ranked(
    train: Sequence[Example], params: Params, settings: Round, epoch: int
) -> tuple[list[ScoredPair], dict[str, float]]:
    """The pairs of a round by the judge's ranks of its candidates, and their metrics.

    Raises:
        DataError: no example has two candidates whose scores are more than `pairs.margin` apart, of similar length.
    """
    subset = random_subset(train, params.pairs.limit, params.seed)
    source, judge = source_of(settings, train, params, epoch), judge_of(settings, params)
    name, margin, ratio = settings.source(params.llm), params.pairs.margin, params.pairs.length_ratio
    pairs, malformed = scored_pairs(subset, source, judge, name=name, margin=margin, length_ratio=ratio, epoch=epoch)
    if not pairs:
        raise DataError(
            f"no pair was made of {len(subset)} examples ({malformed} malformed answers): none has two candidates of "
            f"source {name} that are more than pairs.margin = {margin:g} apart"
            + (f" and within pairs.length_ratio = {ratio:g} in length" if ratio else "")
        )
    labels = len({example.label for example in subset})
    return pairs, describe(subset, pairs, labels) | scores(pairs) | {"malformed": malformed}


def source_of(settings: Round, train: Sequence[Example], params: Params, epoch: int) -> Source:
    """The source of a round's candidates."""
    match settings.source(params.llm):
        case "llm":
            return llm_source(params.llm, params.endpoint, params.seed, epoch, answers_file())
        case "policy":
            return samples_of(settings, params, epoch, params.pairs.samples)
        case _:
            return corpus_source(train, params.pairs.samples, params.seed, epoch)


def samples_of(settings: Round, params: Params, epoch: int, samples: int) -> Source:
    """Samples of the model that a round starts from."""
    model, length = Path(settings.candidates), params.dpo.max_length
    source = policy_source(BASE, model, params.pairs, length, params.hardware, params.seed, epoch, samples)
    return lambda examples: source(instructed_examples(examples, params.pairs))


def policy(
    train: Sequence[Example], params: Params, settings: Round, epoch: int
) -> tuple[list[Pair], dict[str, float]]:
    """The pairs of a round that reject a sample of the model that it starts from, and their metrics.

    Raises:
        DataError: every sample is empty or has the chosen text.
    """
    subset = random_subset(train, params.pairs.limit, params.seed)
    pairs = policy_pairs(subset, samples_of(settings, params, epoch, 1), epoch)
    if not pairs:
        raise DataError(
            f"no pair was made of {len(subset)} examples: every sample of {settings.candidates} is empty or the chosen "
            "reply: raise pairs.max_new_tokens or pairs.temperature"
        )
    return pairs, describe(subset, pairs, len({example.label for example in subset}))


def file(params: Params, epoch: int) -> tuple[list[Pair], dict[str, float]]:
    """The pairs of an epoch from the file in `pairs.table`, and their metrics.

    Beside those of all rules: `left_out_<reason>`, numbers of rows of the file.

    Raises:
        DataError: as `read_preferences`, or no pair is left for this epoch.
    """
    preferences, settings = read_preferences(params.pairs), params.pairs

    def pairs_of(number: int) -> list[Pair]:
        return preferences.of_epoch(number, settings.limit, params.seed)

    reasons, pairs, where = preferences.left_out, pairs_of(epoch), settings.file.hub_id or settings.table
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    if not pairs:
        named = f"; its column epoch has {', '.join(map(str, preferences.epochs))}" if preferences.epochs else ""
        raise DataError(f"{where} has no pair to train on in epoch {epoch}{named} (left out: {counts})")
    print(f"{where}: {len(preferences.train)} pairs to train on; left out: {counts}", file=sys.stderr)
    unusable = reasons["equal"] + reasons["empty"]
    rows = len(preferences.train) + reasons["held_out"] + unusable
    earlier = [pair for number in range(1, epoch) for pair in pairs_of(number)]
    metrics = describe(pairs, pairs, len({pair.label for pair in pairs})) | {"dropped": percent(unusable, rows)}
    metrics |= repeated(pairs, earlier) | {f"left_out_{reason}": count for reason, count in reasons.items()}
    # A set that is the same in every epoch has no other replies to come.
    later = future_epochs(epoch, params) if preferences.epochs else range(0)
    return with_future_rejected(pairs, [pairs_of(number) for number in later]), metrics


def judge_of(settings: Round, params: Params) -> Judge:
    """The judge of a round's candidates."""
    if settings.judged_by_llm(params.llm):
        return llm_judge(params.llm, params.endpoint, answers_file())
    folder = Path(settings.scorer)
    if params.pairs.rule == "epitome":
        return epitome_judge(folder, params.pairs.mechanism, params.hardware)
    return dbt_judge(folder, params.hardware)


def by_module(train: Sequence[Example], params: Params, epoch: int) -> tuple[list[Pair], dict[str, float]]:
    """The pairs of an epoch by the function `build` of the module that `pairs.rule` names, and their metrics.

    Raises:
        DataError: the rule made no pair.
    """
    subset, build = random_subset(train, params.pairs.limit, params.seed), rule_of(params.pairs.rule)
    error = f"no pair was made of {len(subset)} examples by pairs.rule = {params.pairs.rule!r}"
    return with_other_epochs(subset, lambda number: build(subset, train, params, number), epoch, params, error)


def with_other_epochs(
    examples: Sequence[Example], pairs_of: Callable[[int], Sequence[P]], epoch: int, params: Params, error: str
) -> tuple[list[P], dict[str, float]]:
    """The pairs of an epoch with `future_rejected`, and their metrics, by a rule whose draws depend only on data.

    Args:
        examples: that get pairs.
        pairs_of: the pairs of an epoch, given its number.
        epoch: from 1.
        params: of the run.
        error: the message if the epoch has no pair.

    Raises:
        DataError: with `error`.
    """
    pairs = pairs_of(epoch)
    if not pairs:
        raise DataError(error)
    earlier = [pair for number in range(1, epoch) for pair in pairs_of(number)]
    metrics = describe(examples, pairs, len({example.label for example in examples})) | repeated(pairs, earlier)
    return with_future_rejected(pairs, [pairs_of(number) for number in future_epochs(epoch, params)]), metrics


def with_future_rejected(pairs: Sequence[P], later: Sequence[Sequence[P]]) -> list[P]:
    """The pairs of the first epoch with the rejected replies that later epochs have for the same examples.

    Args:
        pairs: of the first epoch.
        later: the pairs of each later epoch.
    """
    rejected = [{pair.id: pair.rejected for pair in epoch} for epoch in later]
    return [
        replace(pair, future_rejected=tuple(epoch[pair.id] for epoch in rejected if pair.id in epoch)) for pair in pairs
    ]


def future_epochs(epoch: int, params: Params) -> range:
    """The epochs whose rejected replies the pairs of `epoch` list: all later ones for the first epoch, else none."""
    return range(2, params.dpo.epochs + 1) if epoch == 1 and params.pairs.fresh else range(0)
