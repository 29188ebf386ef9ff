"""Stage `report`: what came out of a run, on four pages.

    python -m stages.report

writes `reports/summary.md` (the numbers), `reports/samples.md` (replies side by side, ten contexts), and two files that
need no network: `reports/samples.html` (all contexts, to search) and `reports/plots.html` (the curves).
`python -m stages.report --show` prints the summary that is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from stages import drawing, samples_page, win_rates
from stages.checkpoints import tidy
from stages.drawing import Curve, Rounds
from stages.errors import reported
from stages.files import write_text
from stages.params import load
from stages.preferences.opposite_emotion import uniform
from stages.ratings import read_csv
from stages.results import METRICS, missing, read_metrics, read_object, read_text, read_variants, unreadable
from stages.sections import Params, Round
from stages.tables import (
    BEHAVIOUR_CLASSIFIERS,
    BEHAVIOUR_COLUMNS,
    COLUMNS,
    DBT_COLUMNS,
    EMPATHY_CLASSIFIERS,
    EMPATHY_COLUMNS,
    LEVEL_COLUMNS,
    PAIR_COLUMNS,
    VARIANT_COLUMNS,
    Metrics,
    beside_people,
    escape,
    margins,
    measured,
    right,
    table,
)

REPLIES = Path("data/replies")
SCORES = Path("data/scores")
CURVES = Path("reports/curves")
DPO = Path("models/dpo")
RATINGS = Path("data/ratings.csv")
SUMMARY = Path("reports/summary.md")
SAMPLES = Path("reports/samples.md")
BROWSER = Path("reports/samples.html")
PLOTS = Path("reports/plots.html")

FIELDS = ["id", "label", "context", "reference", "reply"]
DPO_CURVES = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
SHOWN = 10
MACHINE = "Written by a machine"
"""What stands over every reply of a model, wherever one is shown."""


@dataclass(frozen=True)
class Results:
    """All that the pages are made of; variants and rounds in the order of the parameters."""

    data: Metrics
    variants: dict[str, Metrics]
    intervals: dict[str, Metrics]
    classifiers: Metrics
    signature: dict[str, str]
    pairs: dict[str, Metrics]
    replies: dict[str, list[dict[str, Any]]]
    scores: dict[str, dict[str, Metrics]]
    losses: dict[str, Curve]
    rounds: Rounds
    preferred: dict[tuple[str, str], Metrics]


def read(params: Params) -> Results:
    """Read what the stages wrote.

    Raises:
        ReportError: a file is missing or does not fit; names the file and the stage that makes it.
        RatingsError: the answers of people cannot be read.
    """
    first = next(iter(params.variants))
    losses: dict[str, Curve] = {"sft": read_curve(CURVES / "sft", "loss", "sft")}
    for quality in params.sft.by_quality:
        losses[f"sft-{quality}"] = read_curve(CURVES / f"sft-{quality}", "loss", f"sft_quality@{quality}")
    if params.model.is_made:
        # A model of the hub comes trained, without a curve.
        losses = {"base": read_curve(CURVES / "base", "loss", "base"), **losses}
    variants, intervals = read_variants(params)
    replies = {key: read_replies(REPLIES / f"{key}.parquet", f"generate@{key}") for key in params.variants}
    return Results(
        data=read_metrics(METRICS / "data.json", "prepare"),
        variants=variants,
        intervals=intervals,
        classifiers=read_classifiers(params),
        signature=read_object(METRICS / f"{first}.signature.json", f"evaluate@{first}"),
        pairs={key: read_metrics(METRICS / "pairs" / f"{key}.json", f"pairs@{key}") for key in params.dpo.rounds},
        replies=replies,
        scores={key: read_scores(SCORES / f"{key}.parquet", f"evaluate@{key}") for key in params.variants},
        losses=losses,
        rounds=read_rounds(params.dpo.rounds),
        preferred=win_rates.compared(read_csv(RATINGS), replies, params.corpus.targets),
    )


def read_classifiers(params: Params) -> Metrics:
    """How good the classifiers of empathy, and of a counsellor's behaviours where a recipe has them, are.

    Raises:
        ReportError: as `read_metrics`.
    """
    scorers = {"epitome": "epitome"} | {name: f"behaviour@{name}" for name in params.behaviour.classifiers}
    read = [read_metrics(METRICS / "scorers" / f"{name}.json", stage) for name, stage in scorers.items()]
    return {key: value for measures in read for key, value in measures.items()}


def read_replies(path: Path, stage: str) -> list[dict[str, Any]]:
    """Read the texts of a variant's replies.

    Raises:
        ReportError: the file is missing, is no parquet, lacks a column or has no rows.
    """
    return _rows(path, FIELDS, stage)


def _rows(path: Path, columns: list[str], stage: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    except FileNotFoundError:
        raise missing(path, stage) from None
    except pa.ArrowInvalid as error:
        raise unreadable(path, stage, str(error)) from None
    if not rows:
        raise unreadable(path, stage, "there are no rows")
    return rows


def read_scores(path: Path, stage: str) -> dict[str, Metrics]:
    """Read the scores of a variant's replies that the page of samples shows, by example.

    Raises:
        ReportError: the file is missing or is no parquet with these columns.
    """
    rows = _rows(path, ["id", *samples_page.SCORES], stage)
    return {row.pop("id"): row for row in rows}


def read_curve(folder: Path, name: str, stage: str) -> list[tuple[int, float]]:
    """Read a DVCLive curve, `<folder>/plots/metrics/<name>.tsv`: one row a logged step; of a repeated step the last.

    Raises:
        ReportError: the file is missing, empty, or a row is no step with a number.
    """
    path = folder / "plots" / "metrics" / f"{name}.tsv"
    points: dict[int, float] = {}
    for line, row in enumerate(read_text(path, stage).splitlines()[1:], start=2):
        try:
            step, value = row.split("\t")
            points[int(step)] = float(value)
        except ValueError:
            raise unreadable(path, stage, f"line {line}: expected a step and a number, found {row!r}") from None
    if not points:
        raise unreadable(path, stage, "there are no steps")
    return sorted(points.items())


def read_rounds(rounds: Mapping[str, Round]) -> Rounds:
    """Read the curves of all rounds of DPO and put them on one step axis.

    A round's curves begin with those of the round that it started from; that part is drawn once. A round that starts
    anew counts its steps from 1 and is put behind the one before it.
    """
    joined = Rounds(curves={name: [] for name in DPO_CURVES})
    last: dict[Path, int] = {}
    position = 0
    for key, one in rounds.items():
        own = {name: read_curve(CURVES / "dpo" / key, name, f"dpo@{key}") for name in DPO_CURVES}
        start, end = last.get(Path(one.init), 0), max(curve[-1][0] for curve in own.values())
        for name, curve in own.items():
            joined.curves[name] += [(step - start + position, value) for step, value in curve if step > start]
        position += end - start
        joined.ends[key], last[DPO / key] = position, end
    return joined


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

- `{SAMPLES}`: replies of all variants side by side, machine-written and unchecked
- `{BROWSER}`: all of them with their scores, to search, filter and sort, in a browser
- `{PLOTS}`: the training curves, with what a healthy one looks like
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
    from stages.scoring.overlap import lengths

    return fmean(lengths(texts))


def samples(results: Results, seed: int) -> str:
    """Test contexts with the human reference and the replies of all variants, as Markdown."""
    by_id = {key: {row["id"]: row for row in rows} for key, rows in results.replies.items()}
    first = next(iter(by_id.values()))
    chosen = choose({name: row["label"] for name, row in first.items() if all(name in o for o in by_id.values())}, seed)
    parts = [
        f"# Replies side by side\n\nReplies headed {MACHINE!r} come from language models, unchecked: some "
        "are wrong or hurtful, and none is counsel.\nThe contexts are a seeded choice of the test split, spread over "
        "the labels."
    ]
    for number, name in enumerate(chosen, start=1):
        row = first[name]
        replies = {f"{MACHINE}: {key}": rows[name]["reply"] for key, rows in by_id.items()}
        turns = "\n>\n".join(quote(turn["text"], f"**{turn['role']}:** ") for turn in row["context"])
        texts = {"Human reference": row["reference"], **replies}
        parts.append(f"## {number}. {escape(row['label'])} ({escape(name)})\n\n{turns}")
        parts += [f"**{escape(title)}**\n\n{quote(text)}" for title, text in texts.items()]
    return "\n\n".join(parts) + "\n"


def choose(labels: Mapping[str, str], seed: int) -> list[str]:
    """Up to ten ids: one of every label before a second of any, else by a hash of seed and id; in order of the labels.

    Args:
        labels: id to label.
        seed: of the run.
    """
    taken: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for name in _shuffled(labels, seed):
        ranks[name] = taken[labels[name]] = taken.get(labels[name], 0) + 1
    chosen = sorted(_shuffled(labels, seed), key=lambda name: ranks[name])[:SHOWN]
    return sorted(chosen, key=lambda name: (labels[name], name))


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: (uniform(2**64, seed, "sample", name), name))


def quote(text: str, before: str = "") -> str:
    """Any text as a Markdown block quote, with its line breaks; `before` is Markdown that leads it."""
    lines = [escape(line.strip()) for line in text.splitlines() if line.strip()]
    return f"> {before}" + "\\\n> ".join(lines or ["*(empty)*"])


def plots(results: Results, params: Params) -> str:
    """The page of the figures."""
    pictures = [
        drawing.losses(results.losses, results.rounds),
        drawing.rewards(results.rounds),
        drawing.margins(results.rounds),
        drawing.accuracies(results.rounds),
        drawing.metric_bars(results.variants, EMPATHY_COLUMNS | COLUMNS),
        drawing.pair_words(results.pairs),
    ]
    return drawing.page("Attune: curves and metrics", lead(results, params), pictures)


def main(params: Params) -> None:
    """Write the pages."""
    tidy()
    results = read(params)
    told = ("Attune: replies side by side", lead(results, params), MACHINE)
    pages = {
        SUMMARY: summary(results, params),
        SAMPLES: samples(results, params.seed),
        BROWSER: samples_page.page(results.replies, results.scores, *told),
        PLOTS: plots(results, params),
    }
    # Only once all of them are made, so that they belong together.
    for path, text in pages.items():
        write_text(path, text)


def show() -> None:
    """Print the summary."""
    print(read_text(SUMMARY, "report"), end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the summary instead of writing the pages")
    with reported():
        show() if parser.parse_args().show else main(load())
