"""The columns of the metrics tables, the tables as Markdown, and the escaping of text in Markdown."""

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
"""In place of a missing number."""

EMPATHY_COLUMNS = {
    "mmlu": ("MMLU ↑", 1),
    "diff_er": ("diff-ER ↓", 3),
    "diff_ex": ("diff-EX ↓", 3),
    "diff_ip": ("diff-IP ↓", 3),
    "bertscore_f1": ("F-BERT ↑", 1),
}
"""In the order of EmPO's table 1; shares x 100."""
KNOWLEDGE_COLUMNS = {
    "answer_logp": ("MMLU log-prob ↑", 3),
    "answer_margin": ("MMLU margin ↑", 3),
}
"""Log-probability of MMLU's right answers, nats a byte, and the same less that of the wrong ones."""
CHANCE = {"preference_accuracy": 50.0} | dict.fromkeys(
    ("mmlu", "acc", "medical_acc", "medical_acc_sad", "medical_acc_belief"), 25.0
)
"""Metric to what guessing gives; `mmlu` is `acc` under the name of the tables. TruthfulQA: see `truth_chance`."""
AT_CHANCE = "†"
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
"""In recipes with a classifier of the stages of DBT; x 100."""
BEHAVIOUR_COLUMNS = {
    "behaviour_reflection_to_question": ("R:Q", 2),
    "behaviour_reflections": ("reflections %", 1),
    "behaviour_questions": ("questions %", 1),
    "behaviour_input": ("input %", 1),
    "behaviour_adherent": ("MI-adherent % ↑", 1),
    "behaviour_non_adherent": ("MI-non-adherent % ↓", 1),
}
"""In recipes with the classifiers of counsellor behaviours."""
COLUMNS = {
    "bleu_1": ("BLEU-1 ↑", 2),
    "bleu_4": ("BLEU-4 ↑", 2),
    "rouge_l": ("ROUGE-L ↑", 2),
    "dist_1": ("Dist-1 ↑", 2),
    "dist_2": ("Dist-2 ↑", 2),
    "reply_words": ("words", 1),
    "empty_share": ("empty % ↓", 1),
    "repeated_share": ("repeated % ↓", 1),
    "opening_share": ("opening %", 1),
    "act_share": ("acts %", 1),
    "preference_accuracy": ("pref. acc. % ↑", 1),
    **{name: (metric.heading, metric.digits) for name, metric in CUSTOM_METRICS.items()},
}
SAFETY_COLUMNS = {
    "safety_human_help": ("human help % ↑", 1),
    "safety_acknowledges": ("acknowledges % ↑", 1),
    "safety_harm": ("harm % ↓", 1),
    "safety_means": ("gives means % ↓", 1),
    "safety_agrees": ("agrees % ↓", 1),
    "safety_person": ("claims a person % ↓", 1),
    "safety_alarm": ("false alarm % ↓", 1),
}
"""Of the variants in `probed`: replies to people in danger, by rules; the last to harmless messages."""
TRUTH_COLUMNS = {
    "truth_acc": ("TruthfulQA % ↑", 1),
    "truth_acc_sad": ("sad preface % ↑", 1),
    "truth_acc_belief": ("false belief % ↑", 1),
    "truth_margin": ("margin ↑", 3),
    "truth_margin_sad_effect": ("sad preface, margin ↑", 3),
    "truth_margin_belief_effect": ("false belief, margin ↑", 3),
}
"""Of the variants in `probed`; margins in nats a byte, the last two less the plain one."""
MEDICAL_COLUMNS = {
    "medical_acc": ("MMLU on health % ↑", 1),
    "medical_acc_sad": ("sad preface % ↑", 1),
    "medical_acc_belief": ("false belief % ↑", 1),
    "medical_margin": ("margin ↑", 3),
    "medical_margin_sad_effect": ("sad preface, margin ↑", 3),
    "medical_margin_belief_effect": ("false belief, margin ↑", 3),
}
"""The same of MMLU's subjects on health."""
CONVERSE_COLUMNS = {
    "converse_relief": ("relief ↑", 2),
    "converse_acknowledges_1": ("acknowledges, turn 1 % ↑", 1),
    "converse_acknowledges_4": ("turn 4 % ↑", 1),
    "converse_words_1": ("words, turn 1", 1),
    "converse_words_4": ("turn 4", 1),
    "converse_repeated": ("repeated % ↓", 1),
    "converse_overlap": ("overlap % ↓", 1),
}
"""Of the variants in `probed`, in conversations with people, scripted or played."""
TRUST_COLUMNS = {
    "judge_people_kappa": ("kappa with raters", 2),
    "judge_people_pairs": ("answers", 0),
    "judge_rated_kappa": ("kappa with ratings", 2),
    "judge_rated_pairs": ("pairs", 0),
    "judge_self_kappa": ("kappa with itself", 2),
    "judge_flips": ("flips %", 1),
    "judge_first": ("first reply %", 1),
    "judge_unreadable": ("unreadable %", 1),
}
"""How far a judge can be trusted."""
WIN_COLUMNS = {
    "judge_win_rate": ("wins %", 1),
    "judge_win_rate_lc": ("at equal length %", 1),
    "judge_win_rate_human": ("wins over people %", 1),
    "judge_win_rate_human_lc": ("at equal length %", 1),
}
"""In no group of `GROUPS`: the summary alone decides whether they are shown."""
SAFETY_TRUST_COLUMNS = {
    "judge_safety_prefers_harm": ("prefers harm % ↓", 1),
    "judge_safety_prefers_harm_duels": ("duels", 0),
    "judge_safety_prefers_human_help": ("prefers human help % ↑", 1),
    "judge_safety_prefers_human_help_duels": ("duels", 0),
    **{
        f"judge_safety_{name}": TRUST_COLUMNS[f"judge_{name}"]
        for name in ("self_kappa", "flips", "first", "unreadable")
    },
}
SAFETY_WIN_COLUMNS = {f"judge_safety_{name}": WIN_COLUMNS[f"judge_{name}"] for name in ("win_rate", "win_rate_lc")}
"""The same two kinds, of the replies to people in danger of the variants in `probed` and `judged`."""
GROUPS = {
    "Levels of empathy": LEVEL_COLUMNS,
    "Empathy and understanding": EMPATHY_COLUMNS,
    "General knowledge": KNOWLEDGE_COLUMNS,
    "Overlap and diversity": COLUMNS,
    "Stages of dialectical behaviour therapy": DBT_COLUMNS,
    "Behaviour of a counsellor": BEHAVIOUR_COLUMNS,
    "Safety": SAFETY_COLUMNS,
    "Warmth against truth": TRUTH_COLUMNS,
    "Warmth against medical knowledge": MEDICAL_COLUMNS,
    "Conversations": CONVERSE_COLUMNS,
}
"""The tables of the metrics of variants, in the order of the pages: levels lead, since people agree with them most."""
VARIANT_COLUMNS = {key: column for columns in GROUPS.values() for key, column in columns.items()}
"""The columns of all groups."""
PROBE_COLUMNS = SAFETY_COLUMNS | TRUTH_COLUMNS | MEDICAL_COLUMNS | CONVERSE_COLUMNS
"""The columns of the variants in `probed`."""
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
MOVEMENT_COLUMNS = {
    "margin": ("margin ↑", 2),
    "accuracy": ("reward acc. % ↑", 1),
    "kl": ("KL", 3),
    "chosen_logp": ("log-prob chosen", 3),
    "rejected_logp": ("log-prob rejected", 3),
    "entropy": ("entropy", 2),
}
"""What a round of DPO moved on valid pairs: margin in nats a pair, all others but the accuracy in nats a token."""

PEOPLE = "people"
"""Name of the row of the human replies."""
EMPATHY_CLASSIFIERS = {"er": "ER", "ex": "EX", "ip": "IP"}
BEHAVIOUR_CLASSIFIERS = {"behaviour": "behaviours of replies", "miti": "adherence of sentences"}
CLASSIFIERS = EMPATHY_CLASSIFIERS | {"dbt": "stages of DBT"} | BEHAVIOUR_CLASSIFIERS
"""The classifiers behind metrics: prefix of their quality measures to title."""
CLASSIFIER_COLUMNS = {
    "accuracy": ("accuracy %", 1),
    "majority_accuracy": ("guessing %", 1),
    "macro_f1": ("macro F1", 1),
    "majority_macro_f1": ("guessing F1", 1),
    "published_kappa": ("kappa, published levels", 2),
}


def table(
    corner: str,
    rows: Mapping[str, Metrics],
    columns: Mapping[str, tuple[str, int]],
    notes: Mapping[str, Mapping[str, str]] | None = None,
    beside: Mapping[str, str] | None = None,
) -> str:
    """A Markdown table of metrics.

    Args:
        corner: heading of the first column.
        rows: name of the row to its metrics; a missing metric becomes a dash.
        columns: metric to its heading and number of decimals.
        notes: name of the row to text that follows its numbers, by metric, as of `margins`.
        beside: metric to text that follows its heading, as of `validity.correlations`.
    """
    said = beside or {}
    heads = (f"{heading} ({said[key]})" if key in said else heading for key, (heading, _) in columns.items())
    cells = [[corner, *heads]]
    for name, values in rows.items():
        row_notes = (notes or {}).get(name, {})
        numbers = (
            f"{values[key]:,.{digits}f}{row_notes.get(key, '')}" if key in values else DASH
            for key, (_, digits) in columns.items()
        )
        cells.append([escape(name), *numbers])
    return markdown_table(cells)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of ready cells, padded so that it also reads well as plain text.

    Args:
        rows: cells; the first row holds the headings. All columns but the first are aligned right.
    """
    alignment = ["left", *["right"] * (len(rows[0]) - 1)]
    return tabulate.tabulate(rows, headers="firstrow", tablefmt="pipe", colalign=alignment, disable_numparse=True)


def direction(heading: str) -> int:
    """1 if higher is better, -1 if lower is, 0 if neither: by the arrow at the end of a column's heading."""
    return heading.endswith("↑") - heading.endswith("↓")


def measured(rows: Mapping[str, Metrics], columns: Mapping[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    """The columns for which any row has a number: preference rules differ in the metrics of their pairs."""
    return {key: column for key, column in columns.items() if any(key in values for values in rows.values())}


def with_people(rows: Mapping[str, Metrics], columns: Mapping[str, tuple[str, int]]) -> dict[str, Metrics]:
    """`rows` and, if the human replies were scored, a row of their metrics, which are equal in every variant's."""
    human = human_metrics(next(iter(rows.values())), columns)
    return {**rows, **({PEOPLE: human} if human else {})}


def human_metrics(metrics: Metrics, columns: Mapping[str, tuple[str, int]]) -> Metrics:
    """The metrics of the human replies (`…reference_…` in a variant's metrics) under the names of `columns`."""
    human = {name.replace("reference_", "", 1): value for name, value in metrics.items() if "reference_" in name}
    if stages := [value for name, value in human.items() if name.startswith("dbt_")]:
        human["dbt_adherence"] = sum(stages)
    return {name: human[name] for name in columns if name in human}


def accuracies(quality: Metrics, names: Mapping[str, str]) -> str:
    """The accuracies of classifiers, each with that of the majority class, in words.

    Args:
        quality: of `results.read_quality`.
        names: prefix of a classifier's measures to its title.
    """
    return ", ".join(
        f"{title} {quality.get(f'{name}_accuracy', 0):.0f} % (majority class: "
        f"{quality.get(f'{name}_majority_accuracy', 0):.0f} %)"
        for name, title in names.items()
    )


def classifier_rows(quality: Metrics) -> dict[str, Metrics]:
    """Title of a classifier to its measures of `CLASSIFIER_COLUMNS`, for each of `CLASSIFIERS` that has any."""
    rows = {
        title: {key: quality[f"{name}_{key}"] for key in CLASSIFIER_COLUMNS if f"{name}_{key}" in quality}
        for name, title in CLASSIFIERS.items()
    }
    return {title: measures for title, measures in rows.items() if measures}


def margins(intervals: Metrics, columns: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """The margin of error that follows a number: ± half the width of its 95 % interval, a star, and `AT_CHANCE`.

    The star means that the interval of the difference to the reference variant excludes 0.

    Args:
        intervals: of a variant; a metric without an interval gets no margin.
        columns: metric to its heading and number of decimals.

    Returns:
        Metric to text.
    """
    texts = {}
    for key, (_, digits) in columns.items():
        if f"{key}.low" in intervals:
            half = (intervals[f"{key}.high"] - intervals[f"{key}.low"]) / 2
            low, high = (intervals.get(f"{key}.diff_{end}", 0.0) for end in ("low", "high"))
            texts[key] = f" ± {half:,.{digits}f}{star(low, high)}{chance_mark(key, intervals)}"
    return texts


def star(low: float, high: float) -> str:
    """A star if the interval of a difference excludes 0, else ""."""
    return "*" if low > 0 or high < 0 else ""


def chance_mark(key: str, intervals: Metrics) -> str:
    """`AT_CHANCE` if the interval of the metric holds what guessing gives, else ""."""
    low, high = (intervals.get(f"{key}.{end}") for end in ("low", "high"))
    chance = intervals.get(f"{key}.chance", CHANCE.get(key))
    if chance is None or low is None or high is None:
        return ""
    return AT_CHANCE if low <= chance <= high else ""


def truth_chance(metrics: Metrics) -> Metrics:
    """The chance level of TruthfulQA, which depends on the questions, as `<metric>.chance` of each accuracy."""
    accuracies = ("truth_acc", "truth_acc_sad", "truth_acc_belief")
    return {f"{key}.chance": metrics["truth_chance"] for key in accuracies if "truth_chance" in metrics}


def mmlu_columns(values: Metrics, intervals: Metrics) -> tuple[Metrics, Metrics]:
    """The metrics of MMLU that the tables show, and the ends of their intervals, under the names of the tables.

    The interval of the accuracy is the normal one by the standard error over the questions; none if that is 0 or
    missing. Those of its difference to the reference variant and of the log-probabilities are the bootstrap's.

    Args:
        values: of `metrics/mmlu/<variant>.json`.
        intervals: of `metrics/intervals/mmlu/<variant>.json`, perhaps empty.
    """
    if "acc" not in values:
        return {}, {}
    error = 1.96 * values.get("acc_stderr", 0.0)
    bounds = {"mmlu.low": values["acc"] - error, "mmlu.high": values["acc"] + error} if error else {}
    for name, end in intervals.items():
        metric, _, which = name.partition(".")
        if metric in KNOWLEDGE_COLUMNS:
            bounds[name] = end
        elif metric == "acc" and which.startswith("diff"):
            bounds[f"mmlu.{which}"] = end
    return {"mmlu": values["acc"]} | {key: values[key] for key in KNOWLEDGE_COLUMNS if key in values}, bounds


def escape(text: str) -> str:
    """Markdown that renders as `text`, whatever that contains; one line."""
    text = visible(text)
    text = re.sub(r"[\\`*_{}\[\]<>#|~$&]", r"\\\g<0>", text)
    # GitHub turns bare addresses into links.
    text = re.sub(r":(?=//)|(?<=www)\.", r"\\\g<0>", text, flags=re.IGNORECASE)
    # Marks of lists, rules and headings, which count at the start of a line only.
    return re.sub(r"^(\s*\d*)([-+=.)])", r"\1\\\2", text)
