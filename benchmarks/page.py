"""The tables of docs/performance.md, from the files in benchmarks/results.

    python -m benchmarks.page

writes the tables between the marks of each section; the prose of the page is edited by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attune.report.tables import markdown_table
from attune.runtime.io import write_text
from benchmarks.measure import RESULTS

PAGE = Path("docs/performance.md")
# Section: the files of `RESULTS` in its table.
SECTIONS = {
    "dpo": ("dpo", "dpo-precomputed"),
    "losses": ("losses",),
    "sft": ("sft",),
    "generate": ("generate",),
    "scoring": ("scoring",),
    "mmlu": ("mmlu",),
    "data": ("data",),
}
LARGE = "Mistral 7 B, LoRA r 1024, on a GPU"
# The last row of a table: the case that needs a GPU; None: there is none.
UNMEASURED = {"scoring": "on a GPU", "data": None, "losses": "on a GPU"}
# Names of sides and peers, shorter than those in the results.
SIDES = {
    "ours": "Attune",
    "trl": "TRL SFTTrainer",
    "plain": "plain loop",
    "trl_defaults": "TRL SFTTrainer, gradient checkpointing (default)",
    "compiled": "Attune, training.compile",
    "live": "TRL, live reference",
    "TRL DPOTrainer, reference adapter live in every step": "TRL, live reference",
    "precomputed": "TRL, precomputed reference",
    "TRL DPOTrainer with precompute_ref_log_probs, its precomputation included": "TRL, precomputed reference",
    "sft": "stage sft, contexts with chosen replies",
}
Case = Mapping[str, Any]
# Column: its value of a case, beside the speed-up and the two rates; the second argument names the peer.
COLUMNS: dict[str, dict[str, Callable[[Case, str], object]]] = {
    "dpo": {
        "tokens/s": lambda case, _: case["ours_tokens_per_second"],
        "peer's tokens/s": lambda case, _: case["peer_tokens_per_second"],
        "GFLOP/pair": lambda case, _: case["ours_gflops_a_pair"],
        "peer's GFLOP/pair": lambda case, _: case["peer_gflops_a_pair"],
        "matmul share": lambda case, _: case["ours_share_of_matmul_rate"],
        "peer's share": lambda case, _: case["peer_share_of_matmul_rate"],
    },
    "losses": {"over sigmoid": lambda case, _: case["over_sigmoid"]},
    "sft": {
        "matmul share": lambda case, _: case["flops_share"]["ours"],
        "peer's share": lambda case, peer: case["flops_share"][peer],
    },
    "generate": {
        "tokens/s": lambda case, _: case["ours_tokens_per_second"],
        "peer's tokens/s": lambda case, _: case["peer_tokens_per_second"],
    },
    "scoring": {"different levels": lambda case, _: case["levels_that_differ"]},
    "mmlu": {
        "tokens/prompt": lambda case, _: case["mean_prompt_tokens"],
        "truncated prompts": lambda case, _: case["prompts_cut"],
    },
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
        ValueError: a mark is missing or repeated.
        KeyError: a section has only some of its results.
    """
    for section, names in SECTIONS.items():
        begin = f"<!-- {section}: written by python -m benchmarks.page -->\n"
        end = f"<!-- end of {section} -->\n"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        measured = names[0] in results
        shown = block(section, [results[name] for name in names]) if measured else "Not measured yet.\n"
        text = before + begin + shown + end + after
    return text


def block(section: str, results: list[Mapping[str, Any]]) -> str:
    """A table of all cases, and a line with data, versions and machine."""
    rate = str(results[0]["unit"]).split()[0]
    columns = COLUMNS.get(section, {})
    head = ["case", "peer", "speed-up", rate, f"peer's {rate}", *columns]
    body = [
        [name, side, spread(case), number(case["ours_per_second"]), number(case["peer_per_second"]),
         *(number(value(case, peer)) for value in columns.values())]
        for result in results for name, peer, side, case in cases(result)
    ]  # fmt: skip
    if unmeasured := UNMEASURED.get(section, LARGE):
        body.append([unmeasured, "", "not measured", *[""] * (len(head) - 3)])
    tables = [
        markdown_table([head, *body]),
        *(markdown_table(sizes(result)) for result in results if "sizes" in result),
    ]
    return "\n\n".join(tables) + "\n\n" + "".join(dict.fromkeys(map(ground, results)))


def cases(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Case]]:
    """Name, peer's key, peer's name and figures of each case, once for each of its peers."""
    for name, case in result["cases"].items():
        for peer, figures in case.get("over", {result["peer"]: case}).items():
            yield name, peer, SIDES.get(peer, peer), {**case, **figures}


def sizes(result: Mapping[str, Any]) -> list[list[str]]:
    """A table of stages by the size of the corpus."""
    rows = [["stage", "dialogues", "seconds", "CPU seconds", "dialogues/s", "pairs/s", "peak MiB", "worker's peak MiB"]]
    for size, stages in sorted(result["sizes"].items(), key=lambda item: int(item[0])):
        for stage, figures in stages.items():
            seconds = max(figures["seconds"], 0.01)
            pairs = number(round(figures["pairs"] / seconds)) if figures["pairs"] else ""
            worker = number(figures["worker_memory_mib"]) if figures["worker_memory_mib"] else ""
            rate, peak = number(round(int(size) / seconds)), number(figures["peak_memory_mib"])
            spent = [number(figures["seconds"]), number(figures["cpu_seconds"])]
            rows.append([stage, number(int(size)), *spent, rate, pairs, peak, worker])
    return rows


def spread(case: Case) -> str:
    return f"{case['ratio']:.2f} ({case['low']:.2f} to {case['high']:.2f})"


def number(value: object) -> str:
    return f"{value:,}"


def ground(result: Mapping[str, Any]) -> str:
    """Data, precision, machine and versions of a result, and its memory where that was measured."""
    on = result["machine"]
    parts = [
        result.get("data"),
        result.get("dtype"),
        f"{on['processor']}, {on['cores']} cores, {on['memory_gib']} GiB, {on['gpu'] or 'no GPU'}",
        f"torch {on['torch']}, transformers {on['transformers']}, TRL {on['trl']}",
    ]
    if "matmul_gflops" in result:
        parts.append(f"matmul rate {result['matmul_gflops']} GFLOP/s")
    line = "; ".join(filter(None, parts)) + "."
    if "peak_memory_mib" in result:
        peaks = (f"{SIDES.get(side, side)} {number(peak)} MiB" for side, peak in result["peak_memory_mib"].items())
        line += f" Peak memory: {'; '.join(peaks)}."
    if "bytes_a_dialogue" in result:
        growth = (f"{stage} {value}" for stage, value in result["bytes_a_dialogue"].items())
        line += f" Growth of the peak in bytes/dialogue, smallest to largest corpus: {'; '.join(growth)}."
    return line + "\n"


if __name__ == "__main__":
    main()
