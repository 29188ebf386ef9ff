"""The tables of docs/performance.md, from the files in benchmarks/results.

    python -m benchmarks.page

writes the tables between the marks of each section; the prose of the page is edited by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attune.report.tables import markdown_table
from attune.runtime.io import between_marks, write_text
from attune.runtime.machine import in_words
from benchmarks.measure import RESULTS

PAGE = Path("docs/performance.md")
# The sections: each has a file in `RESULTS`.
SECTIONS = ("dpo", "losses", "sft", "generate", "scoring", "mmlu", "data")
LARGE = "Mistral 7 B, LoRA r 1024, on a GPU"
# The last row of a table: the case that needs a GPU; None: there is none.
UNMEASURED = {"scoring": "on a GPU", "data": None, "losses": "on a GPU"}
# Names of peers in the tables.
PEERS = {
    "live": "TRL, live reference",
    "precomputed": "TRL, precomputed reference",
    "trl": "TRL SFTTrainer",
    "trl_defaults": "TRL SFTTrainer, defaults (gradient checkpointing)",
    "plain": "plain loop",
    "dynamic": "transformers generate, dynamic cache",
    "static": "transformers generate, static cache",
    "llama_server": "llama.cpp's server, 4-bit weights",
    "hflm": "lm-evaluation-harness, HFLM",
    "one_by_one": "one pair at a time",
    "in_memory": "the definition on a list in memory",
}
# By section, where a peer is another.
OTHERS = {("losses", "trl"): "TRL's trainer of the loss"}
Case = Mapping[str, Any]
# Column: the figure of a case that it shows.
SAME = {
    "model": "model",
    "batch": "batch",
    "tokens/prompt": "mean_prompt_tokens",
    "differing choices": "choices_that_differ",
    "differing levels": "levels_that_differ",
}
# Column of ours and of the peer: the figure of a side; {} is one of the case's unit.
OF_SIDES = {
    ("GFLOP/{}", "peer's GFLOP/{}"): "gflops_each",
    ("matmul share", "peer's share"): "matmul_share",
    ("words/{}", "peer's words/{}"): "words_each",
    ("peak MiB", "peer's peak"): "peak_memory_mib",
}


def main() -> None:
    """Rewrite the tables of the page."""
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), read_results()))


def read_results() -> dict[str, dict[str, Any]]:
    """All results, by file name without suffix."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def page(text: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """`text` with the tables of each section replaced.

    Raises:
        UserError: a mark is missing or repeated.
    """
    for section in SECTIONS:
        begin = f"<!-- {section}: written by python -m benchmarks.page -->\n"
        end = f"<!-- end of {section} -->\n"
        shown = block(section, results[section]) if section in results else "Not measured yet.\n"
        text = between_marks(text, begin, end, shown, PAGE)
    return text


def block(section: str, result: Mapping[str, Any]) -> str:
    """A table of all cases, a row for each peer, and a line with data, versions and machine."""
    cases: Mapping[str, Case] = result["cases"]
    unit = next(iter(cases.values()))["unit"]
    rate, one_of = f"{unit}/s", {"replies": "reply"}.get(unit, unit.removesuffix("s"))
    same = {column: key for column, key in SAME.items() if any(key in case for case in cases.values())}
    of_sides = {columns: key for columns, key in OF_SIDES.items() if any(key in case for case in cases.values())}
    doubled = [name.format(one_of) for columns in of_sides for name in columns]
    first = next(iter(cases.values()))["over"]
    over = ["over sigmoid"] if section == "losses" else []
    head = ["case", *same, "peer", "speed-up", *over, rate, f"peer's {rate}", *doubled]
    body = [
        [name, *(cell(case.get(key)) for key in same.values()), OTHERS.get((section, peer), PEERS.get(peer, peer)),
         spread(one), *(f"{one['ratio'] / first[peer]['ratio']:.2f}" for _ in over),
         cell(one["ours_per_second"]), cell(one["peer_per_second"]),
         *(cell(case.get(key, {}).get(side)) for key in of_sides.values() for side in ("ours", peer))]
        for name, case in cases.items() for peer, one in case["over"].items()
    ]  # fmt: skip
    if unmeasured := UNMEASURED.get(section, LARGE):
        body.append([unmeasured, *("not measured" if name == "speed-up" else "" for name in head[1:])])
    tables = [markdown_table([head, *body]), *([markdown_table(sizes(result))] if "sizes" in result else [])]
    return "\n\n".join(tables) + "\n\n" + ground(result)


def sizes(result: Mapping[str, Any]) -> list[list[str]]:
    """A table of stages by the size of the corpus."""
    rows = [["stage", "dialogues", "seconds", "CPU seconds", "dialogues/s", "pairs/s", "peak MiB", "worker's peak MiB"]]
    for size, stages in sorted(result["sizes"].items(), key=lambda item: int(item[0])):
        for stage, figures in stages.items():
            seconds = max(figures["seconds"], 0.01)
            pairs = cell(round(figures["pairs"] / seconds)) if figures["pairs"] else ""
            worker = cell(figures["worker_memory_mib"]) if figures["worker_memory_mib"] else ""
            rate, peak = cell(round(int(size) / seconds)), cell(figures["peak_memory_mib"])
            spent = [cell(figures["seconds"]), cell(figures["cpu_seconds"])]
            rows.append([stage, cell(int(size)), *spent, rate, pairs, peak, worker])
    return rows


def spread(case: Case) -> str:
    return f"{case['ratio']:.2f} ({case['low']:.2f} to {case['high']:.2f})"


def cell(value: object) -> str:
    """A number with separators of thousands; text as it is, nothing for None."""
    return "" if value is None else value if isinstance(value, str) else f"{value:,}"


def ground(result: Mapping[str, Any]) -> str:
    """Data, precision, machine and versions of the cases, those that differ by their names, and what more there is."""
    named: dict[str, list[str]] = {}
    for name, case in result["cases"].items():
        on = case["machine"]
        parts = [
            case.get("data"),
            case.get("dtype"),
            in_words(on),
            f"torch {on['torch']}, transformers {on['transformers']}, TRL {on['trl']}",
        ]
        named.setdefault("; ".join(filter(None, parts)) + ".", []).append(name)
    lines = list(named) if len(named) == 1 else [f"{', '.join(names)}: {line}" for line, names in named.items()]
    rates = [case["matmul_gflops"] for case in result["cases"].values() if "matmul_gflops" in case]
    if rates:
        lines.append(f"Matmul rate {' to '.join(dict.fromkeys((str(min(rates)), str(max(rates)))))} GFLOP/s.")
    for peaks in [case.get("peak_memory_mib", {}) for case in result["cases"].values()]:
        if "sft" in peaks:
            lines.append(f"Peak of stage sft on the contexts with the chosen replies: {cell(peaks['sft'])} MiB.")
    if "bytes_a_dialogue" in result:
        growth = (f"{stage} {value}" for stage, value in result["bytes_a_dialogue"].items())
        lines.append(f"Growth of the peak in bytes/dialogue, smallest to largest corpus: {'; '.join(growth)}.")
    return " ".join(lines) + "\n"


if __name__ == "__main__":
    main()
