"""The tables of docs/performance.md, from the files in benchmarks/results.

    python -m benchmarks.page

writes what stands between the marks of each section, and leaves the prose alone.
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
# What of `RESULTS` each section shows.
SECTIONS = {
    "dpo": ("dpo", "dpo-precomputed"),
    "sft": ("sft",),
    "generate": ("generate",),
    "scoring": ("scoring",),
    "mmlu": ("mmlu",),
    "data": ("data",),
}
LARGE = "Mistral 7 B, LoRA r 1024, on a GPU"
# The last row of a table, where a GPU would do the work.
UNMEASURED = {"scoring": "on a GPU", "data": None}
SIDES = {
    "ours": "here",
    "trl": "TRL SFTTrainer",
    "plain": "plain loop",
    "trl_defaults": "TRL SFTTrainer, recomputing activations (its default)",
    "compiled": "the same with training.compile",
    "peer": "the peer",
    "live": "TRL DPOTrainer, reference adapter live in every step",
    "precomputed": "TRL DPOTrainer with precompute_ref_log_probs",
    "sft": "stage sft on contexts and chosen replies",
}
Case = Mapping[str, Any]
# Heading to what a case has beside the ratio and the two rates; the second argument names the peer.
COLUMNS: dict[str, dict[str, Callable[[Case, str], object]]] = {
    "dpo": {
        "tokens/s": lambda case, _: case["ours_tokens_per_second"],
        "the peer's tokens/s": lambda case, _: case["peer_tokens_per_second"],
        "GFLOP a pair": lambda case, _: case["ours_gflops_a_pair"],
        "the peer's": lambda case, _: case["peer_gflops_a_pair"],
        "of the product's rate": lambda case, _: case["ours_share_of_matmul_rate"],
        "the peer's of it": lambda case, _: case["peer_share_of_matmul_rate"],
    },
    "sft": {
        "of the product's rate": lambda case, _: case["flops_share"]["ours"],
        "the peer's of it": lambda case, peer: case["flops_share"][peer],
    },
    "generate": {
        "tokens/s": lambda case, _: case["ours_tokens_per_second"],
        "the peer's tokens/s": lambda case, _: case["peer_tokens_per_second"],
    },
    "scoring": {"levels that differ": lambda case, _: case["levels_that_differ"]},
    "mmlu": {
        "tokens a prompt": lambda case, _: case["mean_prompt_tokens"],
        "prompts cut": lambda case, _: case["prompts_cut"],
    },
}


def main() -> None:
    """Write the page anew."""
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), read_results()))


def read_results() -> dict[str, dict[str, Any]]:
    """The results by the names of their files."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def page(text: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """`text` with each section's tables made anew.

    Raises:
        ValueError: a mark is missing, or is there twice.
        KeyError: a section has no result.
    """
    for section, names in SECTIONS.items():
        begin = f"<!-- {section}: written by python -m benchmarks.page -->\n"
        end = f"<!-- end of {section} -->\n"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = before + begin + block(section, [results[name] for name in names]) + end + after
    return text


def block(section: str, results: list[Mapping[str, Any]]) -> str:
    """A table of all cases, and below it what they ran on."""
    what, _, _ = str(results[0]["unit"]).partition("/s")
    columns = COLUMNS.get(section, {})
    head = ["case", "against", "times", f"{what}/s", "the peer's", *columns]
    body = [
        [name, side, spread(case), number(case["ours_per_second"]), number(case["peer_per_second"]),
         *(number(find(case, peer)) for find in columns.values())]
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
    """Name, peer's key, peer's name and figures of each case, one for every peer that it was compared with."""
    for name, case in result["cases"].items():
        for peer, one in case.get("over", {result["peer"]: case}).items():
            yield name, peer, SIDES.get(peer, peer), {**case, **one}


def sizes(result: Mapping[str, Any]) -> list[list[str]]:
    """A table of stages by the size of the corpus."""
    found = [
        ["stage", "dialogues", "seconds", "of all cores", "dialogues/s", "pairs/s", "peak, MiB", "a worker's, at most"]
    ]
    for size, stages in sorted(result["sizes"].items(), key=lambda one: int(one[0])):
        for stage, one in stages.items():
            seconds = max(one["seconds"], 0.01)
            pairs = number(round(one["pairs"] / seconds)) if one["pairs"] else ""
            worker = number(one["worker_memory_mib"]) if one["worker_memory_mib"] else ""
            rate, peak = number(round(int(size) / seconds)), number(one["peak_memory_mib"])
            spent = [number(one["seconds"]), number(one["cpu_seconds"])]
            found.append([stage, number(int(size)), *spent, rate, pairs, peak, worker])
    return found


def spread(case: Case) -> str:
    return f"{case['ratio']:.2f} ({case['low']:.2f} to {case['high']:.2f})"


def number(value: object) -> str:
    return f"{value:,}"


def ground(result: Mapping[str, Any]) -> str:
    """What a result was measured on, and its peaks of memory where it has them."""
    on = result["machine"]
    parts = [
        result.get("data"),
        result.get("dtype"),
        f"{on['processor']}, {on['cores']} cores, {on['memory_gib']} GiB, {on['gpu'] or 'no GPU'}",
        f"torch {on['torch']}, transformers {on['transformers']}, TRL {on['trl']}",
    ]
    if "matmul_gflops" in result:
        parts.append(f"a large matrix product runs at {result['matmul_gflops']} GFLOP/s")
    line = "; ".join(filter(None, parts)) + "."
    if "peak_memory_mib" in result:
        peaks = (f"{SIDES.get(side, side)} {number(peak)} MiB" for side, peak in result["peak_memory_mib"].items())
        line += f" Peak memory: {'; '.join(peaks)}."
    if "bytes_a_dialogue" in result:
        grown = (f"{stage} {value}" for stage, value in result["bytes_a_dialogue"].items())
        line += (
            f" Bytes by which the peak grows a dialogue, from the smallest corpus to the largest: {'; '.join(grown)}."
        )
    return line + "\n"


if __name__ == "__main__":
    main()
