"""Stage `report`: the results of a run on four pages.

    python -m stages.report

writes `reports/summary.md` (the numbers), `reports/samples.md` (replies side by side, ten contexts), and two files that
need no network: `reports/samples.html` (all contexts, to search) and `reports/plots.html` (metrics with their
intervals, rewards of DPO, what DPO moved).
"""

from __future__ import annotations

from pathlib import Path

from attune.config.params import load
from attune.config.schema import Params
from attune.report import figures, movement, samples_page
from attune.report.read import Results, read
from attune.report.samples import MACHINE, samples
from attune.report.summary import lead, summary
from attune.report.tables import COLUMNS, EMPATHY_COLUMNS
from attune.runtime.checkpoints import tidy
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import reported
from attune.runtime.io import write_text

SUMMARY = Path("reports/summary.md")
SAMPLES = Path("reports/samples.md")
BROWSER = Path("reports/samples.html")
PLOTS = Path("reports/plots.html")


def plots(results: Results, params: Params) -> str:
    """The page of the figures."""
    metrics = figures.metrics_picture(results.variants, results.intervals, EMPATHY_COLUMNS | COLUMNS)
    moved = figures.movement_picture(results.dpo)
    rewards = figures.dpo_picture(results.dpo)
    return figures.page("Attune: metrics and DPO", lead(results, params), metrics, rewards, moved, movement.HEALTHY)


def main(params: Params) -> None:
    """Write the pages."""
    tidy()
    results = read(params)
    told = ("Attune: replies side by side", lead(results, params), MACHINE)
    pages = {
        SUMMARY: summary(results, params),
        SAMPLES: samples(results, params.seed),
        BROWSER: samples_page.page(results.replies, results.scores, *told),
        PLOTS: plots(results, params),
    }
    # Only once all of them are made, so that they belong together.
    for path, text in pages.items():
        write_text(path, text)


if __name__ == "__main__":
    with reported():
        stage_arguments(__doc__)
        main(load())
