"""Score replies that this project did not generate, and compare files of them.

    python -m attune score replies.jsonl
    python -m attune score base.csv tuned.csv --column reply=output -o scores.json

A file is jsonl, json (a list of objects), csv or parquet. Column `reply` is needed. `context` (chat messages, or a
text, which is one user turn), `reference` (a human reply), `label` and `id` are optional. Every metric that the columns
allow is printed with its 95 % bootstrap interval and the number n of replies behind it, and what cannot be computed
with the reason. Encoder, resamples and seed are those of params.yaml; classifiers are those that the pipeline has
trained. Corpus counts (Dist, repeated_share) have no interval.

Every further file is compared with the first one by the paired bootstrap, over the contexts that both have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.classifiers import by_key
from attune.config.params import load
from attune.config.schema import Params, bertscore_encoder
from attune.data.dialogue import Example, context_key
from attune.generation.made_elsewhere import COLUMNS, OwnReply, left_out, read
from attune.report.tables import star
from attune.runtime.cli import command_parser
from attune.runtime.errors import ModelError, UserError, visible
from attune.runtime.io import sha256_of, write_json
from attune.scoring.common.replies import is_text

if TYPE_CHECKING:
    import pandas as pd

MODELS = Path("models")
CLASSIFIERS = ("epitome", "dbt", "behaviour")
"""All classifiers that a recipe may have."""
DIGITS = 4
NEEDS_MODEL = "preference_accuracy and MMLU need the model and not its replies: they are for variants of the pipeline"
HEADINGS = ("metric", "value", "from", "to", "n")
DIFFERENCE = ("metric", "difference", "from", "to", "")
Bounds = dict[str, float]


@dataclass(frozen=True)
class Scored:
    """The scores of a file: a row for each reply, and what is computed from them.

    `keys` are those of `pair_keys`, by which the rows of another file are found. `metrics` is name to `value`, `n` and,
    where a metric has an interval, `low` and `high`.
    """

    path: Path
    scores: pd.DataFrame
    keys: list[tuple[str, int]] | None
    metrics: dict[str, Bounds]
    signature: dict[str, str]
    notes: list[str]


def score_rows(path: Path, rows: Sequence[OwnReply], dropped: Counter[str], models: bool, params: Params) -> Scored:
    """Score the rows of a file.

    Args:
        path: of the file.
        rows: of `made_elsewhere.read`.
        dropped: of the same.
        models: whether to use the encoder and the classifiers.
        params: of the project.
    """
    keys = pair_keys(rows)
    notes = [note for note in (left_out(dropped), *gaps(rows, models)) if note]
    scores, values, signature = row_scores(rows, params.classifiers if models else None, params, notes)
    notes.append(NEEDS_MODEL)
    clusters = None if keys is None else [key for key, _ in keys]
    return Scored(path, scores, keys, _metrics(scores, values, clusters, params), signature, notes)


def row_scores(
    rows: Sequence[OwnReply],
    classifiers: Iterable[str] | None,
    params: Params,
    notes: list[str],
    say: Callable[[str], None] = lambda _: None,
) -> tuple[pd.DataFrame, Bounds, dict[str, str]]:
    """The scores of each row, the metrics of the texts, and the signature.

    Args:
        rows: (N,).
        classifiers: keys of those to use where they are trained; None: neither these nor the encoder.
        params: of the project.
        notes: gets a sentence for each group of metrics that is left out.
        say: is told what comes next.
    """
    from attune.scoring.text.scores import evaluate, score, text_signature

    replies = _frame(rows)
    if classifiers is not None:
        say("BERTScore")
    bert, signature = _bertscore(replies, params, notes) if classifiers is not None else ({}, {})
    say("overlap")
    scores = score(replies, bert)
    values, signature = evaluate(replies, scores), text_signature(replies) | signature
    for name in classifiers or () if all(row.context is not None for row in rows) else ():
        say(f"classifier {name}")
        columns, described = _classified(name, replies, params, notes)
        scores, signature = scores.assign(**columns), signature | described
    return scores, values, signature


def _frame(rows: Sequence[OwnReply]) -> pd.DataFrame:
    """The rows with the columns of `data/replies/<variant>.parquet`; no log-probabilities."""
    import pandas as pd

    columns = {
        "id": [row.id or str(number) for number, row in enumerate(rows)],
        "label": [row.label or "" for row in rows],
        "context": [[vars(turn) for turn in row.context or ()] for row in rows],
        "reference": [row.reference for row in rows],
        "reply": [row.reply for row in rows],
        **dict.fromkeys(("rejected", "reference_logp", "rejected_logp")),
    }
    return pd.DataFrame(columns)


def pair_keys(rows: Sequence[OwnReply]) -> list[tuple[str, int]] | None:
    """What the row of another file must share to be paired: the context, and its number among the rows with it.

    None if the file has no contexts.
    """
    seen: Counter[str] = Counter()
    keys = []
    for row in rows:
        if row.context is None:
            return None
        key = context_key(row.context)
        keys.append((key, seen[key]))
        seen[key] += 1
    return keys


def gaps(rows: Sequence[OwnReply], models: bool) -> list[str]:
    """A sentence for each group of metrics that the columns, or the options, do not allow."""
    missing = sum(row.reference is None for row in rows)
    notes = []
    if missing == len(rows):
        notes.append("BLEU, ROUGE, BERTScore and diff compare with a human reply: add a column reference")
    elif missing:
        notes.append(f"{missing} of {len(rows)} rows have no reference: what compares with one is over the others")
    if not models:
        notes.append("BERTScore and the classifiers are left out by --no-models")
    elif rows[0].context is None:
        notes.append("the classifiers read the context: add a column context")
    return notes


def _bertscore(
    replies: pd.DataFrame, params: Params, notes: list[str]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """BERTScore of the rows with a reference and its signature; empty where there are none, or no encoder."""
    from attune.scoring.text.scores import bertscore_signature, bertscores

    compared = replies[replies["reference"].notna()]
    if compared.empty:
        return {}, {}
    try:
        return bertscores(compared, params), bertscore_signature(params)
    except ModelError as error:
        notes.append(f"no BERTScore, since encoder {bertscore_encoder(params).name} cannot be loaded: {error}")
        return {}, {}


def _classified(
    name: str, replies: pd.DataFrame, params: Params, notes: list[str]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """The columns of a classifier, NaN in what compares with a missing reference, and its signature."""
    import pandas as pd

    from attune.data.dialogue import to_turns

    classifier, folder = by_key(name), MODELS / name
    if not folder.is_dir():
        notes.append(f"no metrics of {name}, whose classifier is not trained: `dvc repro classifier@{name}` trains it")
        return {}, {}
    known = [is_text(reference) for reference in replies["reference"].tolist()]
    fields = zip(*(replies[column].tolist() for column in ("id", "label", "context", "reference")), strict=True)
    # A missing reference is scored as an empty text, and what comes of it is not shown.
    examples = [
        Example(key, label, to_turns(context), reference if is_text(reference) else "")
        for key, label, context, reference in fields
    ]
    try:
        references = pd.DataFrame(classifier.label_references(folder, examples, params.hardware))
        columns = classifier.score(folder, replies, references, params.hardware)
    except ModelError as error:
        notes.append(f"no metrics of {name}: {error}")
        return {}, {}
    for column in filter(_compares, columns):
        values = zip(columns[column], known, strict=True)
        columns[column] = [value if has_reference else float("nan") for value, has_reference in values]
    return columns, classifier.signature(folder)


def _compares(column: str) -> bool:
    """Whether a classifier's column depends on the human reply."""
    return column.startswith("diff_") or column == "dbt_diff" or "reference_" in column


def _metrics(
    scores: pd.DataFrame, values: dict[str, float], clusters: Sequence[str] | None, params: Params
) -> dict[str, Bounds]:
    """Every metric: those of the texts in `values`, those of the classifiers, and their intervals.

    Rows of equal contexts are resampled together.
    """
    import numpy as np

    from attune.scoring.intervals.bootstrap import columns, intervals, metrics

    numbers = columns(scores)
    means = {str(name): float(np.nanmean(column)) for name, column in numbers.items() if not name.startswith("bleu_")}
    computed = {name: float(value[0]) for name, value in metrics(numbers, np.ones((1, len(scores)))).items()}
    bounds = intervals(numbers, None, params.evaluate.resamples, params.seed, clusters)
    compared = int(scores["rouge_1"].notna().sum()) if "rouge_1" in scores else 0
    shown = {}
    for name, value in (means | computed | values).items():
        n = int(scores[name].notna().sum()) if name in scores else len(scores)
        of_references = name.startswith("reference_") and name not in scores
        n = compared if name.startswith("bleu_") or name == "dbt_gap" or of_references else n
        ends = {end: round(bounds[f"{name}.{end}"], DIGITS) for end in ("low", "high") if f"{name}.{end}" in bounds}
        shown[name] = {"value": round(value, DIGITS), **ends, "n": n}
    # In the order of metrics/text: overlap, diversity, BERTScore, then the classifiers.
    return {name: shown[name] for name in dict.fromkeys([*values, *computed, *means])}


@dataclass(frozen=True)
class Compared:
    """The differences of two files, second less first: `<metric>.diff`, `.diff_low` and `.diff_high`."""

    first: Path
    second: Path
    paired: int
    differences: Bounds
    note: str


def compare(first: Scored, second: Scored, params: Params) -> Compared:
    """Compare two files over the contexts that both have; a metric over the rows where both have a value."""
    from attune.report.changes import paired_columns
    from attune.scoring.intervals.bootstrap import intervals

    sizes = f"{len(first.scores)} and {len(second.scores)} replies"
    if first.keys is None or second.keys is None:
        return Compared(first.path, second.path, 0, {}, f"unpaired ({sizes}): a file has no column context")
    places = {key: row for row, key in enumerate(second.keys)}
    shared = [key for key in first.keys if key in places]
    if not shared:
        return Compared(first.path, second.path, 0, {}, f"unpaired ({sizes}): no context is in both")
    sides = (
        first.scores.iloc[[row for row, key in enumerate(first.keys) if key in places]].reset_index(drop=True),
        second.scores.iloc[[places[key] for key in shared]].reset_index(drop=True),
    )
    ours, theirs = paired_columns(*sides)
    bounds = intervals(
        theirs,
        ours,
        params.evaluate.resamples,
        params.seed,
        [context for context, _ in shared],
    )
    differences = {name: round(value, DIGITS) for name, value in bounds.items() if ".diff" in name}
    return Compared(
        first.path, second.path, len(shared), differences, f"paired over {len(shared)} equal contexts ({sizes})"
    )


def page(files: Sequence[Scored], compared: Sequence[Compared]) -> str:
    """The tables of the files and of their comparisons, and what was left out."""
    parts = []
    for one in files:
        rows = [
            [name, *(values.get(key) for key in ("value", "low", "high", "n"))] for name, values in one.metrics.items()
        ]
        head = f"{visible(str(one.path))}: {len(one.scores)} replies"
        parts.append("\n".join([head, "", _table(rows, HEADINGS), "", *map(_line, one.notes)]))
    for pair in compared:
        head = f"{visible(str(pair.second))} less {visible(str(pair.first))}: {pair.note}"
        parts.append(head if not pair.differences else f"{head}\n\n{_table(_differences(pair), DIFFERENCE)}")
    if any(pair.differences for pair in compared):
        parts.append("*: the 95 % interval of the difference excludes 0")
    return "\n\n".join(parts)


def _differences(pair: Compared) -> list[list[Any]]:
    rows = []
    for name in (key.removesuffix(".diff") for key in pair.differences if key.endswith(".diff")):
        diff, low, high = (pair.differences[f"{name}.{end}"] for end in ("diff", "diff_low", "diff_high"))
        rows.append([name, diff, low, high, star(low, high)])
    return rows


def _table(rows: Sequence[Sequence[Any]], headings: Sequence[str]) -> str:
    from tabulate import tabulate

    formats = ("", ".2f", ".2f", ".2f", "")
    return tabulate(rows, headings, tablefmt="simple", floatfmt=formats, missingval="\u2013")


def _line(note: str) -> str:
    return f"- {visible(note)}"


def as_json(files: Sequence[Scored], compared: Sequence[Compared], params: Params) -> dict[str, Any]:
    """All numbers, with what they depend on."""
    return {
        "files": [
            {
                "file": str(one.path),
                "sha256": sha256_of(one.path),
                "replies": len(one.scores),
                "metrics": one.metrics,
                "signature": one.signature,
                "left_out": one.notes,
            }
            for one in files
        ],
        "comparisons": [
            {
                "second": str(pair.second),
                "first": str(pair.first),
                "paired": pair.paired,
                "note": pair.note,
                "differences": pair.differences,
            }
            for pair in compared
        ],
        "intervals": {"level": 95, "resamples": params.evaluate.resamples, "seed": params.seed},
    }


def column_names(options: Sequence[str]) -> dict[str, str]:
    """`COLUMN=NAME` of the command line as a mapping.

    Raises:
        UserError: it has another form, or names a column that is none of `COLUMNS`, or one twice.
    """
    names: dict[str, str] = {}
    for option in options:
        column, _, name = option.partition("=")
        if column not in COLUMNS or not name or column in names:
            raise UserError(f"--column {option}: expected COLUMN=NAME once for a column of {', '.join(COLUMNS)}")
        names[column] = name
    return names


def main(argv: Sequence[str]) -> None:
    """Print the tables, and write them as JSON."""
    parser = command_parser("score", __doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="replies; the first is compared with")
    parser.add_argument(
        "--column", action="append", default=[], metavar="COLUMN=NAME", help="the name of a column in the files"
    )
    parser.add_argument("--no-models", action="store_true", help="only what needs neither encoder nor classifier")
    parser.add_argument("-o", "--output", type=Path, metavar="JSON", help="also write all numbers and signatures")
    arguments = parser.parse_intermixed_args(argv)
    params, names = load(), column_names(arguments.column)
    # All files are read before any is scored, which takes longer.
    loaded = [(path, *read(path, names)) for path in arguments.files]
    files = [score_rows(*one, not arguments.no_models, params) for one in loaded]
    compared = [compare(files[0], other, params) for other in files[1:]]
    if arguments.output:
        write_json(arguments.output, as_json(files, compared, params))
    print(page(files, compared))
