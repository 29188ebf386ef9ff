"""`reports/summary.md`: the numbers of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from attune.config.schema import Params
from attune.report import movement, win_rates
from attune.report.read import Results
from attune.report.results import REPLIES
from attune.report.tables import (
    AT_CHANCE,
    BEHAVIOUR_CLASSIFIERS,
    BEHAVIOUR_COLUMNS,
    COLUMNS,
    CONVERSE_COLUMNS,
    DASH,
    DBT_COLUMNS,
    EMPATHY_CLASSIFIERS,
    EMPATHY_COLUMNS,
    KNOWLEDGE_COLUMNS,
    LEVEL_COLUMNS,
    MEDICAL_COLUMNS,
    PAIR_COLUMNS,
    SAFETY_COLUMNS,
    SAFETY_TRUST_COLUMNS,
    SAFETY_WIN_COLUMNS,
    TRUST_COLUMNS,
    TRUTH_COLUMNS,
    VARIANT_COLUMNS,
    WIN_COLUMNS,
    Metrics,
    accuracies,
    chance_mark,
    escape,
    margins,
    measured,
    table,
    with_people,
)
from attune.report.validity import correlations, explanation
from attune.report.verdicts import verdicts
from attune.runtime.errors import visible
from attune.scoring.safety.gate import falls
from attune.scoring.text.templates import SHARES

Notes = Mapping[str, Mapping[str, str]]
Columns = Mapping[str, tuple[str, int]]


def summary(results: Results, params: Params) -> str:
    """The numbers of the run as Markdown that also reads well as plain text."""
    references = [row["reference"] for row in next(iter(results.replies.values()))]
    beta = other_beta(params)
    notes = {name: margins(intervals, VARIANT_COLUMNS) for name, intervals in results.intervals.items()}
    said = "\n".join(f"- {escape(verdict.sentence)}" for verdict in verdicts(results, params))
    people, agreement = (
        correlations(results.validity, results.signature),
        explanation(results.validity, results.signature),
    )
    agreement = f" {agreement}" if agreement else ""
    kappas = _published_kappas(results.quality)
    return f"""# Attune: results of this run

{lead(results, params)}

## Verdicts

{said}

By rule, from the numbers below; `docs/metrics.md` has the rules and the healthy ranges.

## Empathy and understanding

{table("variant", with_people(results.variants, LEVEL_COLUMNS), LEVEL_COLUMNS, notes, people)}

Mean EPITOME levels, 0 to 2, of emotional reactions, interpretations and explorations.

{table("variant", results.variants, EMPATHY_COLUMNS, notes, people)}

diff: mean squared difference between the level of a reply and of the human reply.{agreement}

Accuracy of the EPITOME classifiers on held-out posts: {accuracies(results.quality, EMPATHY_CLASSIFIERS)}.{kappas}
{sections(results, params, notes)}
## Overlap and diversity

{table("variant", results.variants, COLUMNS, notes, people)}

↑ higher is better, ↓ lower is better. words: tokens per reply; human references: {_mean_tokens(references):.1f}.
{_templates(results)}
pref. acc.: preference accuracy on held-out pairs; chance is 50. `docs/metrics.md` defines every metric.
±: half the width of the 95 % bootstrap interval over the answered examples (MMLU: of the normal interval over its
questions). Star: the 95 % interval of the paired difference to the reference variant
({escape(params.evaluate.reference)}) excludes 0. {AT_CHANCE}: at chance, the interval holds what guessing gives (MMLU
25, pref. acc. 50). The intervals do not cover the variation between training seeds.

Signature: {"; ".join(f"{name}: {value}" for name, value in results.signature.items())}

## Preference pairs

{table("round", results.pairs, measured(results.pairs, PAIR_COLUMNS))}

longer rejected: pairs whose rejected reply is the longer one; far from 50 %, length alone separates chosen from
rejected. repeated rejected: pairs whose rejected reply an earlier round drew for the same example.
{movement.section(results.dpo.movement)}
## Where to look

- `reports/samples.md`: replies of all variants side by side, machine-written and unchecked
- `reports/samples.html`: all replies with their scores, to search, filter and sort in a browser
- `reports/report.html`: charts of metrics, levels, dialogues and training, with their numbers on hover
- `{REPLIES}/`: every reply, also machine-written

## What to try next

```sh
# DPO with another beta (now {params.dpo.beta:g}): only the stages that depend on it run. Name a recipe other than the
# default with it: -S recipe=empo -S model=smollm2 -S dpo.beta={beta:g}
dvc exp run -S dpo.beta={beta:g}
make diff                      # what is better or worse than the last commit
dvc plots diff                 # training curves against the last commit
```
"""


def other_beta(params: Params) -> float:
    """A beta of DPO to try next."""
    return 0.1 if params.dpo.beta == 0.025 else 0.025


def lead(results: Results, params: Params) -> str:
    """What was run: corpus, model, seed and sizes."""
    folder = params.corpus.local_folder
    # The embedded sample has the format and so the name of the real corpus: only the folder distinguishes them.
    source = f" from {folder}" if folder and not Path(folder).is_absolute() else ""
    rounds = ", ".join(f"{values.get('pairs', 0):,.0f} ({key})" for key, values in results.pairs.items())
    split = params.generate.split
    train, held_out = (results.data.get(f"{name}_dialogues", 0) for name in ("train", split))
    examples = len(results.replies[params.last_model])
    elsewhere = "".join(
        f"\n{visible(name)}: replies made elsewhere ({visible(variant.model)}), to {len(results.replies[name]):,} of "
        "these examples; differences are over what both variants answer."
        for name, variant in params.variants.items()
        if variant.replies_file
    )
    return (
        f"Corpus {params.corpus.name}{source}, model {params.model.name}, seed {params.seed}.\n"
        f"{train:,.0f} train and {held_out:,.0f} {split} dialogues, {examples:,} {split} examples answered; "
        f"pairs per round: {rounds}.{elsewhere}"
    )


def sections(results: Results, params: Params, notes: Notes) -> str:
    """The sections that not every run has."""
    parts = (
        knowledge(results, notes, params),
        dbt(results, notes),
        behaviour(results, notes),
        safety(results, notes, params),
        truth(results, notes),
        conversations(results, notes, params),
        judge(results, params),
    )
    return "".join([*parts, win_rates.section(results.win_rates)])


def knowledge(results: Results, notes: Notes, params: Params) -> str:
    """The section on MMLU, and which variants are at chance; empty if no variant was measured."""
    rows = {name: metrics for name, metrics in results.variants.items() if "mmlu" in metrics}
    if not rows:
        return ""
    guessing = [escape(name) for name in rows if chance_mark("mmlu", results.intervals[name])]
    says = ""
    if guessing:
        other = "" if params.mmlu.form == "cloze" else ", and `-S mmlu.form=cloze` asks in a form for small models"
        says = f"""

**At chance on MMLU: {", ".join(guessing)}.** Their accuracy cannot show a loss of knowledge. The margin can{other}."""
    return f"""
## General knowledge

{table("variant", rows, {"mmlu": EMPATHY_COLUMNS["mmlu"]} | KNOWLEDGE_COLUMNS, notes)}

MMLU by {params.mmlu.form}. log-prob: mean log-probability of the right answers, nats a byte. margin: the same less the
mean of the wrong ones; compare it between variants.{says}
"""


def dbt(results: Results, notes: Notes) -> str:
    """The section on the stages of DBT; empty if no variant was scored by them."""
    rows = {name: metrics for name, metrics in results.variants.items() if "dbt_gap" in metrics}
    if not rows:
        return ""
    people = correlations(results.validity, results.signature)
    return f"""
## Stages of dialectical behaviour therapy

{table("variant", with_people(rows, DBT_COLUMNS), DBT_COLUMNS, notes, people)}

gap: absolute difference between the mean probability of a stage in the replies and in the human replies, mean over the
four stages. diff: mean squared difference by example. adherence: probability of any of the stages.
"""


def behaviour(results: Results, notes: Notes) -> str:
    """The section on the behaviours of a counsellor; empty if no variant was scored by them."""
    rows = {name: metrics for name, metrics in results.variants.items() if "behaviour_reflections" in metrics}
    if not rows:
        return ""
    people = correlations(results.validity, results.signature)
    return f"""
## Behaviours of a counsellor

{table("variant", with_people(rows, BEHAVIOUR_COLUMNS), BEHAVIOUR_COLUMNS, notes, people)}

R:Q: ratio of reflections to questions. input: advice and information. MI-adherent: share of the sentences of a reply
that adhere to motivational interviewing. Accuracy of the classifiers on held-out examples:
{accuracies(results.quality, BEHAVIOUR_CLASSIFIERS)}.
"""


def safety(results: Results, notes: Notes, params: Params) -> str:
    """The section on safety; empty if no variant was probed."""
    rows = {name: metrics for name, metrics in results.variants.items() if "safety_harm" in metrics}
    if not rows:
        return ""
    told = fallen({name: results.intervals[name] for name in rows}, params.evaluate.reference)
    return f"""
## Safety: a screen for regressions, no clinical instrument

{table("variant", rows, SAFETY_COLUMNS, notes)}

{told}

Shares of the replies to people in danger by rules that read words, of which `docs/safety.md` has precision and recall.
harm: gives means, agrees with what harms, or claims to be a person. false alarm: harmless messages that are answered by
pointing to help. ±: over the probes. All replies: `data/scores/safety/`.
{judge_safety(results, params)}"""


def truth(results: Results, notes: Notes) -> str:
    """The section on TruthfulQA and on MMLU's subjects on health; empty if no variant was probed."""
    rows = {name: metrics for name, metrics in results.variants.items() if "truth_acc" in metrics}
    if not rows:
        return ""
    guessing = next(iter(rows.values()))["truth_chance"]
    of_health = measured(rows, MEDICAL_COLUMNS)
    health = f"""
{table("variant", rows, of_health, notes)}

MMLU's subjects on health (`truth.medical`), asked in the same forms; the belief is a wrong choice, and guessing gives
25 %.
"""
    return f"""
## Warmth against truth

{table("variant", rows, TRUTH_COLUMNS, notes)}

TruthfulQA, one true answer among false ones; guessing gives {guessing:.1f} %. sad preface, false belief: the same
questions after a sad sentence, and with a false answer as the user's belief. margin: log-probability of the true
answer less the mean of the false ones, nats a byte; the last two columns are what the sentence changes in it. Where
accuracy is at chance, margins alone can show a loss.
{health if of_health else ""}"""


def conversations(results: Results, notes: Notes, params: Params) -> str:
    """The section on conversations; empty if no variant was probed."""
    rows = {name: metrics for name, metrics in results.variants.items() if "converse_relief" in metrics}
    if not rows:
        return ""
    people = "people whom a language model plays" if params.converse.seeker == "endpoint" else "scripted people"
    return f"""
## Conversations of four turns

{table("variant", rows, CONVERSE_COLUMNS, notes)}

With {people}; distress, 0 to 5, moves by rules with each reply (`docs/safety.md`). relief: distress at
first less distress at the end. repeated, overlap: replies after the first that an earlier one equals, and trigrams that
an earlier one has. Transcripts: `data/scores/converse/`, three in `reports/samples.md`.
"""


def judge(results: Results, params: Params) -> str:
    """The section on the automatic judge; empty if no variant was judged.

    The win rates are shown only if the judge agrees with people: at least one kappa is measured, and none is below
    `judge.least_kappa`.
    """
    rows = {name: metrics for name, metrics in results.variants.items() if "judge_unreadable" in metrics}
    if not rows:
        return ""
    wins = f"""{_with_spans(rows, results, WIN_COLUMNS)}

wins: of the variant over {escape(params.evaluate.reference)}, a tie counts half; in brackets the 95 % bootstrap
interval over dialogues. at equal length: by a logistic regression on the difference of lengths (Dubois et al. 2024)."""
    return f"""
## What a language model prefers: {escape(params.judge.model)}

{table("variant", rows, measured(rows, TRUST_COLUMNS))}

{_if_trusted(wins, results, params)}

kappa: Cohen's, of win, tie and loss; 0 is chance. flips: verdicts that change with the order, which count as ties.
first reply: share of the decided verdicts for the reply that is shown first; 50 is no bias. `docs/judge.md` says what
this can show.
"""


def judge_safety(results: Results, params: Params) -> str:
    """The part of the section on safety that the automatic judge has; empty if no variant was probed and judged.

    The win rates are shown only where those of `judge` are.
    """
    rows = {name: metrics for name, metrics in results.variants.items() if "judge_safety_unreadable" in metrics}
    if not rows:
        return ""
    wins = f"""{_with_spans(rows, results, SAFETY_WIN_COLUMNS)}

wins: of the variant over {escape(params.evaluate.reference)} in being the safer reply, a tie counts half; in brackets
the 95 % bootstrap interval over the messages. People did not rate these replies."""
    return f"""
### What a language model calls safer: {escape(params.judge.model)}

{_with_spans(rows, results, SAFETY_TRUST_COLUMNS)}

{_if_trusted(wins, results, params)}

prefers harm, prefers human help: of the duels in which the rules find it in one of the two replies alone, and the judge
prefers one, the share in which it prefers that one; in brackets Wilson's 95 % interval. `docs/judge.md` says what this
can show.
"""


def _if_trusted(wins: str, results: Results, params: Params) -> str:
    """The win rates `wins` if the judge agrees with people, else why they are hidden."""
    names, least = ("judge_people_kappa", "judge_rated_kappa"), params.judge.least_kappa
    kappas = [metrics[name] for metrics in results.variants.values() for name in names if name in metrics]
    if kappas and min(kappas) >= least:
        return wins
    why = f"its kappa with people is {min(kappas):.2f}" if kappas else "its agreement with people was not measured"
    return f"**The win rates are hidden**: {why}, and `judge.least_kappa` asks for {least:g}."


def _with_spans(rows: Mapping[str, Metrics], results: Results, columns: Columns) -> str:
    """A table of the columns that the variants have, with the ends of the intervals in brackets."""
    notes = {name: _spans(results.intervals[name], columns) for name in rows}
    return table("variant", rows, measured(rows, columns), notes)


def _spans(ends: Metrics, columns: Columns) -> dict[str, str]:
    return {
        name: f" ({ends[f'{name}.low']:.1f} to {ends[f'{name}.high']:.1f})" for name in columns if f"{name}.low" in ends
    }


def fallen(intervals: Mapping[str, Metrics], reference: str) -> str:
    """Which variants fall below the reference variant in safety, in words.

    Args:
        intervals: of each probed variant.
        reference: its name.
    """
    worse = {name: falls(ends) for name, ends in intervals.items() if name != reference}
    sentences = [
        f"**{escape(name)} falls below {escape(reference)}**: {'; '.join(map(escape, found))}."
        for name, found in worse.items()
        if found
    ]
    return "\n".join(sentences) or f"No variant falls below {escape(reference)} by more than its interval."


def _templates(results: Results) -> str:
    """What the columns of template shares mean, with those of the human replies."""
    first = next(iter(results.variants.values()))
    human = (f"{first[key]:.1f}" if (key := f"reference_{name}") in first else DASH for name in SHARES)
    return (
        "opening, acts: replies with the commonest first three words, and with the commonest sequence of what the "
        f"sentences do;\nof the human replies {' and '.join(human)}."
    )


def _published_kappas(quality: Metrics) -> str:
    """Agreement of EPITOME's levels with the published ones, in a sentence; empty where it was not measured."""
    if "er_published_kappa" not in quality:
        return ""
    kappas = (f"{title} {quality[f'{name}_published_kappa']:.2f}" for name, title in EMPATHY_CLASSIFIERS.items())
    return f" Cohen's kappa with the published levels of held-out dialogues: {', '.join(kappas)}."


def _mean_tokens(texts: Sequence[str]) -> float:
    from attune.scoring.text.overlap import lengths

    return fmean(lengths(texts))
