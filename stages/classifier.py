"""Stage `classifier@<name>`: train a classifier for scoring, and evaluate it on held-out data.

    python -m stages.classifier epitome

writes `models/epitome/` and `metrics/classifiers/epitome.json`. The others are `dbt` (the four stages of dialectical
behaviour therapy) and `behaviour` (a counsellor's behaviours, and adherence to motivational interviewing).
"""

from __future__ import annotations

from pathlib import Path

from attune.classifiers import by_key
from attune.config.params import load, named
from attune.config.schema import Params
from attune.runtime.checkpoints import checkpoints
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import reported
from attune.runtime.io import write_json

MODELS = Path("models")
METRICS = Path("metrics/classifiers")
DIGITS = 3


def main(name: str, params: Params) -> None:
    """Write `models/<name>` and its metrics."""
    named(params.classifiers, name, "classifiers")
    classifier = by_key(name)
    with checkpoints(f"classifier@{name}", params) as folder:
        metrics = classifier.train(params, folder, MODELS / name)
        write_json(METRICS / f"{name}.json", {key: round(value, DIGITS) for key, value in metrics.items()})


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, classifier="a key of classifiers")
        main(arguments.classifier, load())
