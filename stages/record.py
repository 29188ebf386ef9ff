"""Run a recipe to its end and keep what came out, with commit, machine and the wall time of each stage.

    python -m stages.record empo-tiny recipe=empo model=tiny

composes `params.yaml`, reproduces stage by stage, writes `docs/results/empo-tiny.json`, and from all files there
`docs/results.md` and the README's table; without a name nothing is run. An interrupted record goes on with the stages
that are left.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from stages.errors import UserError, reported
from stages.files import write_json, write_text
from stages.params import compose, load

RESULTS = Path("docs/results")
PAGE = Path("docs/results.md")
METRICS = Path("metrics")
README = Path("README.md")
BEGIN, END = "<!-- results: written by python -m stages.record -->", "<!-- end of results -->"
SHOWN = {
    "bleu_1": "BLEU-1 ↑",
    "bleu_4": "BLEU-4 ↑",
    "rouge_l": "ROUGE-L ↑",
    "dist_1": "Dist-1 ↑",
    "dist_2": "Dist-2 ↑",
    "reply_words": "words",
    "empty_share": "empty %",
    "repeated_share": "repeated %",
    "preference_accuracy": "preference accuracy % ↑",
}


def run(name: str, overrides: list[str], results: Path) -> None:
    """Reproduce every stage in order and write the record after each, so that a kill loses one stage's time at most.

    Raises:
        UserError: the working tree differs from its commit, so that the commit would not name what ran; a stage failed.
    """
    path = results / f"{name}.json"
    record = _begin(path, name, overrides)
    compose(overrides)
    for stage in _output("dvc", "stage", "list", "--name-only").split():
        started = time.monotonic()
        if subprocess.run(["dvc", "repro", "--single-item", stage], check=False).returncode:
            raise UserError(f"stage {stage} failed: mend it and run the same command again")
        record["wall_seconds"].setdefault(stage, round(time.monotonic() - started, 1))
        write_json(path, record)
    params = load()
    record["data"] = _read(METRICS / "data.json")
    record["pairs"] = {key: _read(METRICS / f"pairs/{key}.json") for key in params.dpo.rounds}
    record["metrics"] = {key: _read(METRICS / f"{key}.json") for key in params.variants}
    record["signature"] = {key: _read(METRICS / f"{key}.signature.json") for key in params.variants}
    write_json(path, record)


def machine() -> dict[str, Any]:
    """What the run ran on: processor, cores, memory in GiB, GPU, and the versions that move numbers."""
    import torch
    import transformers
    import trl

    return {
        "processor": next(_processors(), platform.machine()),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }


def page(records: list[dict[str, Any]]) -> str:
    """`docs/results.md` from the records: for each the command, what it ran on, the variants, the pairs, the times."""
    opening = (
        "# Results\n\nWritten by `python -m stages.record` from `docs/results/*.json`. `docs/metrics.md` defines every "
        "number. One seed and no intervals: small differences say nothing.\n"
    )
    return "\n".join([opening, *(_section(record) for record in records)])


def headline(record: dict[str, Any]) -> str:
    """A record's table of variants with the sentence that says where it comes from: what the README shows."""
    on, data = record["machine"], record["data"]
    hardware = f"{on['processor']}, {on['cores']} cores, {on['memory_gib']} GiB, {on['gpu'] or 'no GPU'}"
    rows = [[name, *(_figure(m.get(key)) for key in SHOWN)] for name, m in record["metrics"].items()]
    origin = (
        f"`{record['command']}`, commit {record['commit'][:12]}, {record['date']}, {hardware}: "
        f"{data['train_dialogues']} train and {data['test_dialogues']} test dialogues, "
        f"{next(iter(record['pairs'].values()))['pairs']} pairs a round."
    )
    return "\n".join([*_table(["variant", *SHOWN.values()], rows), "", origin, ""])


def insert(readme: str, block: str) -> str:
    """`readme` with `block` between its two marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{block}{END}{rest.split(END)[1]}"


def _section(record: dict[str, Any]) -> str:
    on, seconds = record["machine"], record["wall_seconds"]
    shares = ["pairs", "chosen_words", "rejected_words", "longer_rejected", "repeated_rejected"]
    pairs = [[key, *(_figure(m[share]) for share in shares)] for key, m in record["pairs"].items()]
    times = [[stage, f"{spent:.0f}"] for stage, spent in (seconds | {"all": sum(seconds.values())}).items()]
    versions = f"torch {on['torch']}, transformers {on['transformers']}, TRL {on['trl']}, Python {on['python']}."
    return "\n".join(
        [
            f"## {record['name']}\n",
            headline(record),
            versions + "\n",
            *_table(["round", "pairs", "chosen words", "rejected words", "longer rejected %", "repeated %"], pairs),
            "",
            *_table(["stage", "wall time, s"], times),
            "",
        ]
    )


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|---" + "|---:" * (len(header) - 1) + "|"
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".removesuffix(".00")


def _begin(path: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    """A new record, or the one that was interrupted: same commit, same command, no metrics yet."""
    if _output("git", "status", "--porcelain", "--", "stages", "conf", "dvc.yaml", "data/sources.yaml"):
        raise UserError(
            "stages, conf or dvc.yaml differ from the commit: commit first, so that the record names what ran"
        )
    begun = {
        "name": name,
        "command": " ".join(["python -m stages.record", name, *overrides]),
        "commit": _output("git", "rev-parse", "HEAD").strip(),
    }
    if path.is_file():
        old = _read(path)
        if begun.items() <= old.items() and "metrics" not in old:
            return old
    return begun | {"date": date.today().isoformat(), "machine": machine(), "wall_seconds": {}}


def _processors() -> Iterator[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    yield from (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Run the recipe, if one is given, and write the page and the README's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the record: docs/results/<name>.json")
    parser.add_argument("overrides", nargs="*", help="as of `dvc exp run -S`: recipe=empo model=tiny")
    arguments = parser.parse_args()
    if arguments.name:
        run(arguments.name, arguments.overrides, RESULTS)
    records = [_read(path) for path in sorted(RESULTS.glob("*.json"))]
    write_text(PAGE, page(records))
    write_text(README, insert(README.read_text(encoding="utf-8"), "\n".join(map(headline, records))))


if __name__ == "__main__":
    with reported():
        main()
