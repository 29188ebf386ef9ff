"""What stages took, and what they would take with other params.

A time says something of stages with the same model, corpus, encoder, device and precision alone; of pairs, with the
same kind of rule. The amount of work then scales it: epochs of SFT, pairs, replies, questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attune.config.params import compose, load
from attune.config.schema import Params
from attune.report.results import METRICS, MMLU, pairs_file, replies_file
from attune.runtime.errors import UserError
from attune.runtime.io import write_json

TIMES = Path(".cache/stage_times.json")
UNITS = {
    "pairs": "pairs", "dpo": "pairs", "generate": "replies", "evaluate": "replies", "scores": "replies",
    "mmlu": "questions",
}  # fmt: skip
"""Kind of stage to what it makes or reads; `sft` is scaled by its epochs, and others do the same work in every run."""
DRAWN = ("opposite_emotion", "random")
"""Rules whose rejected reply is one of the corpus."""

Count = Callable[[str, str], float | None]
"""From a value of `UNITS` and a round or variant to the number that there was; None: unknown."""


@dataclass(frozen=True)
class Time:
    """Seconds of a stage, what it ran on, the limit of its work (None: all there was), and its amount."""

    seconds: float
    like: str
    limit: float | None
    amount: float | None

    def expected(self, stage: str, params: Params) -> float | None:
        """Seconds of a stage of the same kind with these params; None if nothing can be said."""
        wanted = limit(stage, params)
        if self.like != like(stage, params):
            return None
        if wanted == self.limit:
            return self.seconds
        if wanted is None or not self.amount:
            return None
        # There is no more than all.
        return self.seconds * (min(wanted, self.amount) if self.limit is None else wanted) / self.amount


def kind(stage: str) -> str:
    """`dpo` of `dpo@e1`."""
    return stage.partition("@")[0]


def task(stage: str, params: Params) -> str:
    """The kind of a stage; of pairs, with their rule, where it does not draw from the corpus as others do."""
    if kind(stage) != "pairs":
        return kind(stage)
    return "pairs drawn from the corpus" if params.pairs.rule in DRAWN else f"pairs by {params.pairs.rule}"


def conditions(params: Params) -> str:
    """Model, corpus, encoder, device and precision, in words."""
    corpus = "the embedded corpus" if params.corpus.local_dir == "data/sample" else params.corpus.name
    parts = (params.model.name, corpus, params.encoder.name, params.compute.device, params.compute.dtype)
    return ", ".join(parts)


def like(stage: str, params: Params) -> str:
    """What must be equal for a time to say something."""
    return f"{task(stage, params)}: {conditions(params)}"


def limit(stage: str, params: Params) -> float | None:
    """How much work the params allow in the unit of a stage; None: all there is."""
    if kind(stage) == "sft":
        return params.sft.epochs
    limits = {
        "pairs": params.pairs.limit,
        "replies": params.generate.limit,
        "questions": params.mmlu.limit,
    }
    return limits[UNITS[kind(stage)]] if kind(stage) in UNITS else 1


def time_of(stage: str, seconds: float, params: Params, count: Count) -> Time:
    """The time of a stage that ran with these params."""
    unit, name = UNITS.get(kind(stage)), stage.partition("@")[2]
    of = name.rpartition("-")[0] if kind(stage) == "scores" else name
    amount = count(unit, of) if unit else None
    most = limit(stage, params)
    return Time(seconds, like(stage, params), most, most if amount is None else amount)


def here(unit: str, name: str) -> float | None:
    """The `Count` of the working tree."""
    try:
        if unit == "replies":
            import pyarrow.parquet as pq

            return float(pq.read_metadata(replies_file(name).path).num_rows)
        if unit == "pairs":
            return float(json.loads(pairs_file(name).path.read_text(encoding="utf-8"))["pairs"])
        signature = json.loads((METRICS / MMLU / f"{name}.signature.json").read_text(encoding="utf-8"))
        return int(signature["questions"]) / int(signature["subjects"])
    except (OSError, ValueError, KeyError):
        return None


def read_times() -> dict[str, Time]:
    """The times that `python -m attune repro` kept here, by stage; none before its first run."""
    if not TIMES.is_file():
        return {}
    return {stage: Time(**values) for stage, values in json.loads(TIMES.read_text(encoding="utf-8")).items()}


def write_times(times: Mapping[str, Time]) -> None:
    """Keep the times."""
    write_json(TIMES, {stage: asdict(time) for stage, time in times.items()})


def recorded(record: Mapping[str, Any], compositions: Mapping[str, list[str]], work: Path) -> list[dict[str, Time]]:
    """The times of a record of `attune record` by stage, of each of its models; none of one that ran nothing.

    Args:
        record: the JSON object.
        compositions: model to the overrides of its run.
        work: a folder to compose params in.
    """
    found = []
    for model, overrides in compositions.items():
        part = record.get("models", {}).get(model, record)
        try:
            compose(overrides, work / "params.yaml")
            params = load(work / "params.yaml")
        except UserError:
            # Of another version, whose keys were others.
            continue

        def count(unit: str, name: str, part: Mapping[str, Any] = part) -> float | None:
            values = {"pairs": ("pairs", "pairs"), "replies": ("signature", "examples")}.get(unit)
            number = part.get(values[0], {}).get(name, {}).get(values[1]) if values else None
            return None if number is None else float(number)

        times = part.get("wall_seconds", {})
        found.append({stage: time_of(stage, seconds, params, count) for stage, seconds in times.items()})
    return [times for times in found if times]


def in_words(seconds: float) -> str:
    """A time such as `45 s`, `3 min 10 s`, `4 min` or `1 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return " ".join([*([f"{minutes} min"] if minutes else []), *([f"{rest} s"] if rest or not minutes else [])])


def rounded(seconds: float) -> float:
    """To minutes, below two of them to ten seconds."""
    step = 60 if seconds >= 120 else 10
    return max(step, round(seconds / step) * step)
