"""Markdown that pages share: the tables of metrics, and text of any origin shown as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import tabulate

from attune.runtime.errors import visible
from attune.scoring.text.custom import CUSTOM_METRICS

# tabulate pads headings to two more than their width unless this is 0.
tabulate.MIN_PADDING = 0

Metrics = dict[str, float]

DASH = "\u2013"
"""What stands for a missing number."""

EMPATHY_COLUMNS = {
    "mmlu": ("MMLU ↑", 1),
    "diff_er": ("diff-ER ↓", 3),
    "diff_ex": ("diff-EX ↓", 3),
    "diff_ip": ("diff-IP ↓", 3),
    "bertscore_f1": ("F-BERT ↑", 1),
}
"""In the order of EmPO's table 1; shares x 100."""
LEVEL_COLUMNS = {
    "level_er": ("ER", 2),
    "level_ip": ("IP", 2),
    "level_ex": ("EX", 2),
}
"""Mean EPITOME levels, 0 to 2."""
DBT_COLUMNS = {
    "dbt_gap": ("DBT gap ↓", 2),
    "dbt_diff": ("DBT diff ↓", 2),
    "dbt_adherence": ("adherence % ↑", 1),
    "dbt_listening": ("listening %", 1),
    "dbt_reflecting": ("reflecting %", 1),
    "dbt_acknowledging": ("acknowledging %", 1),
    "dbt_genuine": ("genuine %", 1),
}
"""Of recipes with a classifier of DBT's stages; x 100."""
BEHAVIOUR_COLUMNS = {
    "behaviour_reflection_to_question": ("R:Q", 2),
    "behaviour_reflections": ("reflections %", 1),
    "behaviour_questions": ("questions %", 1),
    "behaviour_input": ("input %", 1),
    "behaviour_adherent": ("MI-adherent % ↑", 1),
    "behaviour_non_adherent": ("MI-non-adherent % ↓", 1),
}
"""Of recipes with the classifiers of a counsellor's behaviours."""
COLUMNS = {
    "bleu_1": ("BLEU-1 ↑", 2),
    "bleu_4": ("BLEU-4 ↑", 2),
    "rouge_l": ("ROUGE-L ↑", 2),
    "dist_1": ("Dist-1 ↑", 2),
    "dist_2": ("Dist-2 ↑", 2),
    "reply_words": ("words", 1),
    "empty_share": ("empty % ↓", 1),
    "repeated_share": ("repeated % ↓", 1),
    "preference_accuracy": ("pref. acc. % ↑", 1),
    **{name: (metric.heading, metric.digits) for name, metric in CUSTOM_METRICS.items()},
}
GROUPS = {
    "Empathy and understanding": EMPATHY_COLUMNS,
    "Levels of empathy": LEVEL_COLUMNS,
    "Overlap and diversity": COLUMNS,
    "Stages of dialectical behaviour therapy": DBT_COLUMNS,
    "Behaviour of a counsellor": BEHAVIOUR_COLUMNS,
}
"""The metrics of variants in the order of the pages, a table each."""
VARIANT_COLUMNS = {key: column for columns in GROUPS.values() for key, column in columns.items()}
"""All of them."""
PAIR_COLUMNS = {
    "pairs": ("pairs", 0),
    "dropped": ("dropped %", 1),
    "label_coverage": ("labels %", 1),
    "chosen_words": ("chosen words", 1),
    "rejected_words": ("rejected words", 1),
    "longer_rejected": ("longer rejected %", 1),
    "repeated_rejected": ("repeated rejected %", 1),
    "chosen_score": ("chosen score", 1),
    "rejected_score": ("rejected score", 1),
    "malformed": ("malformed", 0),
    "match_post": ("same post %", 1),
    "match_source": ("same source %", 1),
    "match_topic_and_talk": ("same topic and talk %", 1),
    "match_topic": ("topic %", 1),
    "match_talk": ("talk %", 1),
    "match_none": ("neither %", 1),
    "candidates": ("to draw from", 0),
}

PEOPLE = "people"
"""The row of the human replies."""
EMPATHY_CLASSIFIERS = {"er": "ER", "ex": "EX", "ip": "IP"}
BEHAVIOUR_CLASSIFIERS = {"behaviour": "behaviours of replies", "miti": "adherence of sentences"}
CLASSIFIERS = EMPATHY_CLASSIFIERS | {"dbt": "stages of DBT"} | BEHAVIOUR_CLASSIFIERS
"""The classifiers behind metrics: what their measures begin with in a record, to what they are called."""
CLASSIFIER_COLUMNS = {
    "accuracy": ("accuracy %", 1),
    "majority_accuracy": ("guessing %", 1),
    "macro_f1": ("macro F1", 1),
    "majority_macro_f1": ("guessing F1", 1),
}


def table(
    corner: str,
    rows: Mapping[str, Metrics],
    columns: Mapping[str, tuple[str, int]],
    notes: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """A Markdown table with padded columns.

    Args:
        corner: heading of the first column.
        rows: name of the row to its metrics; a missing one becomes a dash.
        columns: metric to its heading and number of decimals.
        notes: of `margins`, name of the row to what stands behind its numbers, by metric.
    """
    behind = notes or {}
    cells = [[corner, *(heading for heading, _ in columns.values())]]
    for name, values in rows.items():
        own = behind.get(name, {})
        numbers = (
            f"{values[key]:,.{digits}f}{own.get(key, '')}" if key in values else DASH
            for key, (_, digits) in columns.items()
        )
        cells.append([escape(name), *numbers])
    return markdown_table(cells)


def markdown_table(rows: Sequence[Sequence[str]], align: str = "right") -> str:
    """A Markdown table of ready cells, padded so that it also reads well as plain text.

    Args:
        rows: cells; the first row holds the headings.
        align: of every column but the first, which is aligned left.
    """
    alignment = ["left", *[align] * (len(rows[0]) - 1)]
    return tabulate.tabulate(rows, headers="firstrow", tablefmt="pipe", colalign=alignment, disable_numparse=True)


def direction(heading: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither is: by the arrow of a column's heading."""
    return heading.endswith("↑") - heading.endswith("↓")


def measured(rows: Mapping[str, Metrics], columns: Mapping[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    """The columns for which any of `rows` has a number: rules make pairs with metrics of their own."""
    return {key: column for key, column in columns.items() if any(key in values for values in rows.values())}


def people(metrics: Metrics, columns: Mapping[str, tuple[str, int]]) -> Metrics:
    """The human replies' numbers among a variant's, `…reference_…`, under the names of `columns`."""
    own = {name.replace("reference_", "", 1): value for name, value in metrics.items() if "reference_" in name}
    if stages := [value for name, value in own.items() if name.startswith("dbt_")]:
        own["dbt_adherence"] = sum(stages)
    return {name: own[name] for name in columns if name in own}


def beside_people(rows: Mapping[str, Metrics], columns: Mapping[str, tuple[str, int]]) -> dict[str, Metrics]:
    """The variants' rows and, where human replies were measured, theirs, which is the same beside each variant."""
    own = people(next(iter(rows.values())), columns)
    return {**rows, **({PEOPLE: own} if own else {})}


def right(classifiers: Metrics, names: Mapping[str, str]) -> str:
    """The accuracy of classifiers beside that of always guessing the most frequent label, in words.

    Args:
        classifiers: of `metrics/scorers/`.
        names: what the measures of a classifier begin with to what it is called.
    """
    return ", ".join(
        f"{title} {classifiers.get(f'{name}_accuracy', 0):.0f} % (guessing: "
        f"{classifiers.get(f'{name}_majority_accuracy', 0):.0f} %)"
        for name, title in names.items()
    )


def classifier_rows(classifiers: Metrics) -> dict[str, Metrics]:
    """The measures of `CLASSIFIER_COLUMNS` of each classifier of `CLASSIFIERS` that there are any of, by its title."""
    found = {
        title: {key: classifiers[f"{name}_{key}"] for key in CLASSIFIER_COLUMNS if f"{name}_{key}" in classifiers}
        for name, title in CLASSIFIERS.items()
    }
    return {title: measures for title, measures in found.items() if measures}


def margins(intervals: Metrics, columns: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """What stands behind the numbers of a variant: ± half of the 95 % interval's width, and a star where it differs.

    Args:
        intervals: of `metrics/intervals/<variant>.json`; a metric without an interval gets nothing.
        columns: metric to its heading and number of decimals.

    Returns:
        Metric to text; the star says that the interval of its difference to the reference variant does not hold 0.
    """
    found = {}
    for key, (_, digits) in columns.items():
        if f"{key}.low" in intervals:
            half = (intervals[f"{key}.high"] - intervals[f"{key}.low"]) / 2
            low, high = (intervals.get(f"{key}.diff_{side}", 0.0) for side in ("low", "high"))
            found[key] = f" ± {half:,.{digits}f}{'*' if low > 0 or high < 0 else ''}"
    return found


def mmlu_columns(values: Metrics) -> tuple[Metrics, Metrics]:
    """MMLU's metrics and its interval under the names of the tables, from `metrics/mmlu/<variant>.json`.

    The interval is the normal one of the standard error over questions, where the file has one.
    """
    if "acc" not in values:
        return {}, {}
    error = 1.96 * values.get("acc_stderr", 0.0)
    bounds = {"mmlu.low": values["acc"] - error, "mmlu.high": values["acc"] + error}
    return {"mmlu": values["acc"]}, bounds if error else {}


def escape(text: str) -> str:
    """Text of one line as Markdown that shows it as it is, whatever it contains."""
    text = visible(text)
    text = re.sub(r"[\\`*_{}\[\]<>#|~$&]", r"\\\g<0>", text)
    # Bare addresses, which GitHub links.
    text = re.sub(r":(?=//)|(?<=www)\.", r"\\\g<0>", text, flags=re.IGNORECASE)
    # What makes a list, a rule or a heading at the start of a line only.
    return re.sub(r"^(\s*\d*)([-+=.)])", r"\1\\\2", text)
