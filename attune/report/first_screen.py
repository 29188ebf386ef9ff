"""The first screen after a run: a verdict in words, the main numbers, two replies before and after, and what is next.

Nothing is wider than 80 columns, and six variants take 30 lines at most. `reports/` has the rest.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import tabulate

from attune.config.schema import Params
from attune.data.dialogue import dialogue_of
from attune.report.read import read
from attune.report.results import TEXT, read_rows, scores_file
from attune.report.samples import choose
from attune.report.summary import other_beta
from attune.report.tables import AT_CHANCE, DASH, Metrics, chance_mark, measured, with_people
from attune.report.verdicts import cautions, start_of, verdicts
from attune.runtime.errors import visible
from attune.scoring.intervals.bootstrap import intervals

WIDTH = 80
SAMPLES = 2
# Lines of a text that a sample shows, and of what asks for caution.
LINES = 2
COLUMNS = {
    "preference_accuracy": ("accuracy %", 1),
    "repeated_share": ("repeated %", 1),
    "reply_words": ("words", 1),
    "bertscore_f1": ("F-BERT", 1),
    "level_er": ("ER", 2),
    "level_ip": ("IP", 2),
    "level_ex": ("EX", 2),
    "mmlu": ("MMLU", 1),
}
"""The plainest of the columns of the pages; `docs/metrics.md` defines them."""


def first_screen(params: Params) -> str:
    """The screen, from the files of the stages.

    Raises:
        UserError: a file is missing or is invalid; names the file and the stage that writes it.
    """
    results = read(params)
    metrics, bounds = results.variants, results.intervals
    after = params.last_model
    before = next(name for name in (params.evaluate.reference, *params.variants) if name != after or len(metrics) == 1)
    replies = {name: results.replies[name] for name in dict.fromkeys([before, after])}
    parts = [
        verdict(params, metrics, bounds),
        f"{numbers(metrics, bounds)}\n{look_out(cautions(verdicts(results, params)))}".rstrip(),
        samples(replies, params.seed),
        following(params),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict(params: Params, metrics: Mapping[str, Metrics], bounds: Mapping[str, Metrics]) -> str:
    """What the last variant with a model has learned against the reference variant.

    Judged by the interval of their paired difference.
    """
    last, reference = params.last_model, params.evaluate.reference
    key, repeated = "preference_accuracy", "repeated_share"
    rejected = "its opposite" if params.pairs.rule == "opposite_emotion" else "the rejected one"
    dialogues = f"{params.generate.split} dialogues"
    chosen, of = ("chosen", "held-out pairs") if params.pairs.rule == "file" else ("human", dialogues)
    sentences = []
    if key in metrics[last]:
        sentence = f"{last} prefers the {chosen} reply to {rejected} in {metrics[last][key]:.1f} % of {of}"
        if key in metrics[reference] and f"{key}.diff" in bounds[last]:
            sentence += f", {reference} in {metrics[reference][key]:.1f} %: {judged(bounds[last], key)}"
        start = start_of(params, last)
        if start not in (None, reference) and key in metrics.get(start, {}):
            sentence += f"; {start} in {metrics[start][key]:.1f} %: {judged(gain(params, last, start, key), key)}"
        sentences.append(f"{sentence}. Chance is 50 %.")
    if repeated in metrics[last]:
        beside = f" (of {reference}: {metrics[reference][repeated]:.1f} %)" if reference != last else ""
        sentences.append(f"{metrics[last][repeated]:.1f} % of its replies repeat another one{beside}.")
    return textwrap.fill(visible(" ".join(sentences)), WIDTH, break_on_hyphens=False)


def gain(params: Params, variant: str, start: str, key: str) -> Metrics:
    """The paired difference of a text metric between a variant and the one that it starts from, with its interval.

    Raises:
        UserError: a file of scores is missing; names the stage that writes it.
    """
    import numpy as np

    files = [scores_file(TEXT, name) for name in (variant, start)]
    scores = [{row["id"]: row[key] for row in read_rows(file, ["id", key])} for file in files]
    ids = sorted(scores[0].keys() & scores[1].keys())
    ours, theirs = ({key: np.array([one[name] for name in ids], dtype=float)} for one in scores)
    dialogues = [dialogue_of(name, params.context.targets) for name in ids]
    return intervals(ours, theirs, params.evaluate.resamples, params.seed, dialogues)


def judged(bounds: Metrics, key: str) -> str:
    """`better`, `worse` or `no difference shown`, with the difference and its 95 % interval; higher is better."""
    diff, low, high = (bounds[f"{key}.{end}"] for end in ("diff", "diff_low", "diff_high"))
    word = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    return f"{word} ({diff:+.1f} [{low:.1f}, {high:.1f}])"


def numbers(metrics: Mapping[str, Metrics], bounds: Mapping[str, Metrics]) -> str:
    """The table of the variants, without the columns that no variant has a number in; the levels of people, too."""
    columns = measured(metrics, COLUMNS)
    rows = [["variant", *(heading for heading, _ in columns.values())]]
    for name, values in with_people(metrics, columns).items():
        ends = bounds.get(name, {})
        cells = (
            f"{values[key]:,.{digits}f}{chance_mark(key, ends)}" if key in values else DASH
            for key, (_, digits) in columns.items()
        )
        rows.append([visible(name), *cells])
    alignment = ["left", *["right"] * len(columns)]
    table = tabulate.tabulate(rows, headers="firstrow", tablefmt="plain", colalign=alignment, disable_numparse=True)
    levels = "ER, IP, EX: empathy, 0 to 2. " if "level_er" in columns else ""
    chance = f"{AT_CHANCE}: at chance. " if AT_CHANCE in table else ""
    return f"{table}\n{levels}{chance}All numbers: reports/summary.md"


def look_out(said: Sequence[str]) -> str:
    """What asks for caution, by the rules of `verdicts`; empty if nothing does."""
    return _wrapped("Look out: ", "; ".join(said)) if said else ""


def samples(replies: Mapping[str, list[dict[str, Any]]], seed: int) -> str:
    """The last turn of two contexts, and the replies of the variants to them.

    Args:
        replies: variant to its rows of `read_replies`, in the order to show.
        seed: of the run.
    """
    by_id = {variant: {row["id"]: row for row in rows} for variant, rows in replies.items()}
    first = next(iter(by_id.values()))
    shared = {key: row["label"] for key, row in first.items() if all(key in rows for rows in by_id.values())}
    lines = ["Two of the dialogues (all: reports/samples.html); a machine wrote the replies:"]
    for key in choose(shared, seed, SAMPLES):
        lines.append(_wrapped("somebody: ", first[key]["context"][-1]["text"]))
        lines += [_wrapped(f"  {variant}: ", rows[key]["reply"] or "(empty)") for variant, rows in by_id.items()]
    return "\n".join(lines)


def following(params: Params) -> str:
    """The commands that come next."""
    chat = f"python -m attune chat {visible(params.last_model)}"
    change = f"dvc exp run -S dpo.beta={other_beta(params):g}"
    # Without its recipe, `dvc exp run -S` would compose the default one.
    return f"  {chat}   talk to it\n  {change}   another beta (with -S recipe=… if it had one)"


def _wrapped(name: str, text: str) -> str:
    """`name` and a text on at most `LINES` lines, the later ones indented."""
    return textwrap.fill(visible(f"{name}{text}"), WIDTH, subsequent_indent="    ", max_lines=LINES, placeholder=" …")
