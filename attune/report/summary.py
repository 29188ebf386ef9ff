"""TODO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from attune.config.schema import Params
from attune.report import win_rates
from attune.report.read import REPLIES, Results
from attune.report.tables import (
    BEHAVIOUR_CLASSIFIERS,
    BEHAVIOUR_COLUMNS,
    COLUMNS,
    DBT_COLUMNS,
    EMPATHY_CLASSIFIERS,
    EMPATHY_COLUMNS,
    LEVEL_COLUMNS,
    PAIR_COLUMNS,
    VARIANT_COLUMNS,
    beside_people,
    escape,
    margins,
    measured,
    right,
    table,
)


def summary(results: Results, params: Params) -> str:
    """The numbers of the run as Markdown that reads well as plain text."""
    references = [row["reference"] for row in next(iter(results.replies.values()))]
    beta = 0.1 if params.dpo.beta == 0.025 else 0.025
    notes = {name: margins(bounds, VARIANT_COLUMNS) for name, bounds in results.intervals.items()}
    return f"""# Attune: what came out

{lead(results, params)}

## Empathy and understanding

{table("variant", results.variants, EMPATHY_COLUMNS, notes)}

diff: mean squared difference of a reply's EPITOME level, 0 to 2, to the human reply's. The mean levels themselves:

{table("variant", beside_people(results.variants, LEVEL_COLUMNS), LEVEL_COLUMNS, notes)}

The classifiers behind them are right on {right(results.classifiers, EMPATHY_CLASSIFIERS)} of held-out posts.
{dbt(results, notes)}{behaviour(results, notes)}{win_rates.section(results.preferred)}
## Overlap and diversity

{table("variant", results.variants, COLUMNS, notes)}

↑ higher is better, ↓ lower is better. words: tokens a reply; the human references have {_mean_tokens(references):.1f}.
pref. acc.: preference accuracy on held-out pairs, 50 is chance. `docs/metrics.md` defines every number.
±: half of the 95 % interval over the test examples (MMLU: over its questions). Star: the interval of the difference
to {escape(params.evaluate.reference)} does not hold 0. No interval here covers another seed of training.

Signature: {"; ".join(f"{name}: {value}" for name, value in results.signature.items())}

## Preference pairs

{table("round", results.pairs, measured(results.pairs, PAIR_COLUMNS))}

longer rejected: far from 50 %, length alone tells the two sides apart. repeated rejected: drawn before, too.

## Where to look

- `reports/samples.md`: replies of all variants side by side, machine-written and unchecked
- `reports/samples.html`: all of them with their scores, to search, filter and sort, in a browser
- `reports/plots.html`: the training curves, with what a healthy one looks like
- `{REPLIES}/`: every reply, machine-written, too

## What to try next

```sh
# DPO again with another beta (now {params.dpo.beta:g}) and what hangs on it, nothing else. A recipe other than the
# default is named with it: -S recipe=empo -S model=tiny -S dpo.beta={beta:g}
dvc exp run -S dpo.beta={beta:g}
make diff                      # the numbers against those of the last commit, without what lies within noise
dvc plots diff                 # the curves against those of the last commit
```
"""


def lead(results: Results, params: Params) -> str:
    """The line that says what was run: corpus, model, seed and sizes."""
    folder = params.corpus.local_dir
    # The embedded sample has the format and so the name of the real corpus: the folder tells them apart.
    source = f" from {folder}" if folder and not Path(folder).is_absolute() else ""
    rounds = ", ".join(f"{one.get('pairs', 0):,.0f} ({key})" for key, one in results.pairs.items())
    train, test = (results.data.get(f"{split}_dialogues", 0) for split in ("train", "test"))
    answered = len(next(iter(results.replies.values())))
    return (
        f"Corpus {params.corpus.name}{source}, model {params.model.name}, seed {params.seed}.\n"
        f"{train:,.0f} train and {test:,.0f} test dialogues, {answered:,} of them answered; pairs a round: {rounds}."
    )


def dbt(results: Results, notes: Mapping[str, Mapping[str, str]]) -> str:
    """The section on the stages of DBT, empty where no variant has been scored by them."""
    rows = {name: metrics for name, metrics in results.variants.items() if "dbt_gap" in metrics}
    if not rows:
        return ""
    shown = beside_people(rows, DBT_COLUMNS)
    return f"""
## Stages of dialectical behaviour therapy

{table("variant", shown, DBT_COLUMNS, notes)}

gap: how far the mean probability of a stage is from that in people's replies, mean over the four stages. diff: the same
example by example, squared. adherence: probability of any stage.
"""


def behaviour(results: Results, notes: Mapping[str, Mapping[str, str]]) -> str:
    """The section on what a counsellor does, empty where no variant has been scored by it."""
    rows = {name: metrics for name, metrics in results.variants.items() if "behaviour_reflections" in metrics}
    if not rows:
        return ""
    return f"""
## Behaviours of a counsellor

{table("variant", beside_people(rows, BEHAVIOUR_COLUMNS), BEHAVIOUR_COLUMNS, notes)}

R:Q: replies that reflect for each one that asks. input: advice and information. MI-adherent: share of the sentences of
a reply that adhere to motivational interviewing. The classifiers behind them are right on held-out examples:
{right(results.classifiers, BEHAVIOUR_CLASSIFIERS)}.
"""


def _mean_tokens(texts: Sequence[str]) -> float:
    from attune.scoring.text.overlap import lengths

    return fmean(lengths(texts))
