"""Verdicts by rule on a run, which a reader of its tables would have to find: docs/metrics.md has the rules.

Each rule is a function from the results to verdicts. A verdict says what is so in few words, for the first screen, and
in a sentence with its numbers, for the summary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from attune.config.schema import ROUNDS, Params, chain
from attune.data.dialogue import dialogue_of
from attune.report.length import WORDS, Matched, at_matched_length, correlation_with_words, of_replies
from attune.report.movement import RANGES, unhealthy
from attune.report.read import DPO_CURVES, Curve, DpoCurves, Results
from attune.report.tables import (
    EMPATHY_CLASSIFIERS,
    LEVEL_COLUMNS,
    MOVEMENT_COLUMNS,
    PROBE_COLUMNS,
    VARIANT_COLUMNS,
    Metrics,
    direction,
    star,
)

if TYPE_CHECKING:
    import pandas as pd

LEVELS = (0, 1, 2)
SATURATED = 95.0
"""Share of replies with one level from which a change of the others hardly shows."""
LEAST = 20
"""Replies at matched length of both variants together, below which nothing is said about length."""
KEPT = 0.5
"""Share of a difference that counts as most of it."""
# Healthy ranges. As a factor of the human replies' words; as shares of pairs or of steps; in points of the metric.
WORD_RANGE = 0.5, 2.0
LONGER = 35.0, 65.0
EARLY, TOO_EASY = 0.2, 95.0
COLLAPSE = (
    (
        "empty_share",
        1.0,
        "writes empty replies",
        "{ours:.1f} % of the replies of {name} are empty, of {reference} {base:.1f} %: a sign of collapse.",
    ),
    (
        "repeated_share",
        5.0,
        "repeats itself",
        "{ours:.1f} % of the replies of {name} repeat another one, of {reference} {base:.1f} %: a sign of collapse.",
    ),
    (
        "dist_2_per_reply",
        -10.0,
        "loops",
        "Of the word pairs of a reply of {name} {ours:.1f} % are distinct, of {reference} {base:.1f} %: "
        "a reply says the same again and again.",
    ),
)
"""Metric, points by which it may be above (if negative: below) the reference, and what is said otherwise."""


class Verdict(NamedTuple):
    """What is so, in few words and as a sentence; the names in it are not escaped."""

    short: str
    sentence: str


class Check(NamedTuple):
    """A number that has a healthy range: its name, whether it is within it, and the sentence if it is not."""

    name: str
    healthy: bool
    sentence: str


def verdicts(results: Results, params: Params) -> list[Verdict]:
    """All verdicts on a run; none where nothing is to be said."""
    checks = list(healthy_ranges(results, params))
    return [
        *no_better(results, params.evaluate.reference),
        *(Verdict(check.name, check.sentence) for check in checks if not check.healthy),
        *saturated(results),
        *never_given(results),
        *explained_by_length(results, params),
        *within_range(checks),
    ]


def cautions(found: Sequence[Verdict]) -> list[str]:
    """What asks for caution, in few words, shortest first, since a screen shows the beginning.

    All verdicts but that the other checks are within their range.
    """
    return sorted((verdict.short for verdict in found if verdict.short), key=len)


def no_better(results: Results, reference: str) -> Iterator[Verdict]:
    """The metrics on which no variant beats the reference: no interval of a paired difference is on the better side.

    Not of the probes, which are screens for losses.
    """
    others = {name: ends for name, ends in results.intervals.items() if name != reference}
    missed = []
    for metric, (heading, _) in VARIANT_COLUMNS.items():
        side = direction(heading)
        bounds = [
            (ends[f"{metric}.diff_low"], ends[f"{metric}.diff_high"])
            for ends in others.values()
            if f"{metric}.diff_low" in ends
        ]
        # Where nothing differs at all (no reply is empty) there is nothing to beat.
        differs = any(low or high for low, high in bounds)
        beaten = any(low > 0 if side > 0 else high < 0 for low, high in bounds)
        if side and metric not in PROBE_COLUMNS and differs and not beaten:
            missed.append(heading.rstrip(" ↑↓"))
    if missed:
        names = ", ".join(missed)
        yield Verdict(f"no variant beats {reference} on {names}", f"No variant beats {reference} on {names}.")


def saturated(results: Results) -> Iterator[Verdict]:
    """The levels that nearly all replies of a variant have."""
    for metric, (heading, _) in LEVEL_COLUMNS.items():
        found = []
        for name, scores in results.examples.items():
            for level in LEVELS if metric in scores else ():
                share = 100 * float((scores[metric].dropna() == level).mean())
                if share >= SATURATED:
                    found.append(f"{share:.1f} % of the replies of {name} have level {level}")
        if found:
            yield Verdict(
                f"{heading} saturates", f"{heading} saturates: {'; '.join(found)}. It can hardly tell them apart."
            )


def never_given(results: Results) -> Iterator[Verdict]:
    """The levels that a classifier gives neither to a reply nor to a human one."""
    scores = list(results.examples.values())
    for metric, (heading, _) in LEVEL_COLUMNS.items():
        columns = [one[metric] for one in scores if metric in one]
        human = [one[f"reference_{metric}"] for one in scores[:1] if f"reference_{metric}" in one]
        given = {value for column in (*columns, *human) for value in column.dropna().tolist()}
        lacking = [str(level) for level in LEVELS if level not in given]
        if columns and lacking:
            texts = sum(len(column) for column in (*columns, *human))
            words = f"the {heading} classifier never gives level {' or '.join(lacking)}"
            costs = f": every difference of {heading} counts 4" if lacking == ["1"] else ""
            yield Verdict(words, f"T{words[1:]}, in {texts:,} texts{costs}.")


def explained_by_length(results: Results, params: Params) -> Iterator[Verdict]:
    """The differences to the reference that their interval shows, and of which little is left at matched length."""
    reference = params.evaluate.reference
    for name in results.variants:
        if name == reference or not (results.examples.keys() >= {name, reference}):
            continue
        ours, theirs = paired(results.examples[name], results.examples[reference])
        dialogues = [dialogue_of(str(key), params.context.targets) for key in ours.index]
        for metric, (heading, digits) in VARIANT_COLUMNS.items():
            low, high = (results.intervals[name].get(f"{metric}.diff_{end}", 0.0) for end in ("low", "high"))
            if not of_replies(metric, ours) or metric not in theirs or not star(low, high):
                continue
            found = at_matched_length(ours, theirs, metric, dialogues, params.evaluate.resamples, params.seed)
            plain = results.intervals[name][f"{metric}.diff"], low, high
            rho = correlation_with_words(ours, theirs, metric)
            yield from by_length(f"{heading.rstrip(' ↑↓')} of {name}", reference, plain, found, rho, digits)


def by_length(
    what: str, reference: str, plain: tuple[float, float, float], found: Matched, rho: float, digits: int
) -> Iterator[Verdict]:
    """The verdict on one difference with its interval; none if it is there at matched length, or half of it is left."""

    def bounded(value: float, low: float, high: float) -> str:
        return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"

    left = found.value / plain[0]
    start = f"less {reference} it is {bounded(*plain)}"
    if found.replies < LEAST:
        said = f"{start}, and only {found.replies} replies are of a common length"
        yield Verdict(f"length may explain {what}", f"Length may explain {what}: {said}.")
    elif left < 0 or (left < KEPT and not star(found.low, found.high)):
        matched = f"at matched length {bounded(*found[:3])} over {found.replies} replies"
        said = f"{start}, {matched}; its rank correlation with words is {rho:+.2f}"
        yield Verdict(f"length explains {what}", f"Length explains {what}: {said}.")


def paired(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the examples that both have, in one order."""
    shared = ours.index.intersection(theirs.index).sort_values()
    return ours.loc[shared], theirs.loc[shared]


def healthy_ranges(results: Results, params: Params) -> Iterator[Check]:
    """Every number that has a healthy range."""
    yield from range_of_replies(results, params.evaluate.reference)
    yield from range_of_training(results, params)
    yield from range_of_rewards(results)
    yield from range_of_movement(results.dpo)
    yield from range_of_pairs(results.pairs)
    yield from range_of_classifiers(results.quality)


def range_of_replies(results: Results, reference: str) -> Iterator[Check]:
    """Empty replies, repeated ones, and ones that go round in circles, which a collapse brings, and their length."""
    from attune.scoring.text.overlap import lengths

    base = results.variants.get(reference, {})
    human = fmean(lengths([row["reference"] for row in next(iter(results.replies.values()))]))
    for name, values in results.variants.items():
        for key, most, short, sentence in COLLAPSE:
            if name != reference and key in values and key in base:
                said = sentence.format(name=name, ours=values[key], reference=reference, base=base[key])
                bound = base[key] + most
                yield Check(f"{name} {short}", values[key] <= bound if most > 0 else values[key] >= bound, said)
        if WORDS in values and human:
            low, high = (factor * human for factor in WORD_RANGE)
            said = f"Replies of {name} have {values[WORDS]:.1f} words, human ones {human:.1f}"
            size = "long" if values[WORDS] > human else "short"
            yield Check(
                f"replies of {name} are {size}",
                low <= values[WORDS] <= high,
                f"{said}: overlap and levels follow the length.",
            )


def range_of_training(results: Results, params: Params) -> Iterator[Check]:
    """Overlap that fine-tuning brings and DPO keeps, and the preference that DPO brings."""
    reference, key, overlap = params.evaluate.reference, "preference_accuracy", "rouge_l"
    for name, values in results.variants.items():
        start = start_of(params, name)
        if start is None or start not in results.variants:
            continue
        before, base = results.variants[start], results.variants.get(reference, {})
        if key in values and key in before:
            said = f"{name} prefers the better reply in {values[key]:.1f} %, {start}, from which it starts, in"
            sentence = f"{said} {before[key]:.1f} %: DPO has not taught it."
            yield Check(f"DPO of {name} taught no preference", values[key] > before[key], sentence)
        if start == reference or not all(overlap in side for side in (values, before, base)):
            continue
        gain, kept = before[overlap] - base[overlap], values[overlap] - base[overlap]
        said = f"ROUGE-L of {start} is {before[overlap]:.2f}, of {reference} {base[overlap]:.2f}"
        yield Check(f"{start} is no closer to human replies", gain > 0, f"{said}: fine-tuning brought no overlap.")
        if gain > 0:
            said = f"ROUGE-L of {name} is {values[overlap]:.2f}, of {start} {before[overlap]:.2f}, of {reference}"
            sentence = f"{said} {base[overlap]:.2f}: DPO has lost most of what fine-tuning brought."
            yield Check(f"DPO of {name} lost overlap", kept >= KEPT * gain, sentence)


def range_of_rewards(results: Results) -> Iterator[Check]:
    """The implicit rewards of DPO and their accuracy, over all rounds."""
    chosen, rejected, accuracy, _ = (results.dpo.curves[name] for name in DPO_CURVES)
    if not (chosen and rejected and accuracy):
        return
    ends = tuple(curve[-1][1] for curve in (chosen, rejected))
    said = f"The rewards of DPO end at {ends[0]:.3g} for chosen and {ends[1]:.3g} for rejected replies"
    yield Check("chosen replies end below rejected ones", ends[0] > ends[1], f"{said}: it did not learn the pairs.")
    last = 100 * accuracy[-1][1]
    sentence = f"The reward accuracy of DPO ends at {last:.0f} %: chance is 50."
    yield Check("reward accuracy ends at chance", last > 50, sentence)
    early = 100 * mean_early(accuracy)
    sentence = f"The reward accuracy of DPO is {early:.0f} % in the first fifth of its steps: the pairs are too easy."
    yield Check("pairs are too easy", early < TOO_EASY, sentence)


def range_of_movement(dpo: DpoCurves) -> Iterator[Check]:
    """What each round moved on valid pairs."""
    outside = {key: unhealthy(start, end) for key, (start, end) in dpo.movement.items()}
    for name in RANGES if outside else ():
        heading, digits = MOVEMENT_COLUMNS[name]
        what = heading.removesuffix(" ↑")
        said = [
            f"from {start[name]:.{digits}f} to {end[name]:.{digits}f} after {key}"
            for key, (start, end) in dpo.movement.items()
            if name in outside[key]
        ]
        sentence = f"On valid pairs {what} left its healthy range: {', '.join(said)}."
        yield Check(f"{what} of valid pairs left its range", not said, sentence)


def mean_early(curve: Curve) -> float:
    """The mean over the first fifth of the steps."""
    end = EARLY * curve[-1][0]
    return fmean([value for step, value in curve if step <= end] or [curve[0][1]])


def range_of_pairs(pairs: dict[str, Metrics]) -> Iterator[Check]:
    """Length, which must not tell chosen from rejected replies."""
    for key, values in pairs.items():
        if "longer_rejected" in values:
            share, (low, high) = values["longer_rejected"], LONGER
            said = f"In {share:.1f} % of the pairs of {key} the rejected reply is the longer one"
            yield Check(
                f"length separates the pairs of {key}", low <= share <= high, f"{said}: length alone separates many."
            )


def range_of_classifiers(quality: Metrics) -> Iterator[Check]:
    """The classifiers of EPITOME against guessing."""
    for name, title in EMPATHY_CLASSIFIERS.items():
        if f"{name}_majority_accuracy" in quality:
            accuracy, guessing = quality[f"{name}_accuracy"], quality[f"{name}_majority_accuracy"]
            said = f"The {title} classifier is right in {accuracy:.0f} % of held-out posts, the majority class in"
            sentence = f"{said} {guessing:.0f} %: its levels mean nothing."
            yield Check(f"the {title} classifier guesses", accuracy > guessing, sentence)


def within_range(checks: Sequence[Check]) -> Iterator[Verdict]:
    """How many checks are within their range; not said in few words."""
    healthy = sum(check.healthy for check in checks)
    if checks:
        yield Verdict("", f"{healthy} of {len(checks)} checked numbers are within their healthy range.")


def start_of(params: Params, variant: str) -> str | None:
    """The variant that the first round of DPO behind `variant` starts from; None where there is none."""
    model = Path(params.variants[variant].model)
    if model.parent != ROUNDS or model.name not in params.rounds:
        return None
    start = params.rounds[chain(params.rounds, model.name)[0]].init
    return next((name for name, one in params.variants.items() if one.model == start), None)
