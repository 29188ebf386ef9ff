"""Stage `report`: the results of a run on four pages.

    python -m stages.report

writes `reports/summary.md` (the numbers), `reports/samples.md` (replies side by side, ten contexts), `reports/sft.csv`
and `reports/dpo.csv` (curves, for `dvc plots`), and two files that need no network: `reports/samples.html` (all
contexts, to search) and `reports/report.html` (metrics with their intervals, levels beside people's, differences by
dialogue, curves, what DPO moved).
"""

from __future__ import annotations

from pathlib import Path

from attune.config.params import load
from attune.config.schema import Params
from attune.report import charts, curves, movement, samples_page
from attune.report.read import Results, read
from attune.report.samples import MACHINE, samples
from attune.report.summary import lead, summary
from attune.report.tables import LEVEL_COLUMNS, VARIANT_COLUMNS
from attune.runtime.checkpoints import tidy
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import reported
from attune.runtime.io import write_text

SUMMARY = Path("reports/summary.md")
SAMPLES = Path("reports/samples.md")
BROWSER = Path("reports/samples.html")
REPORT = Path("reports/report.html")
SFT_CURVES = Path("reports/sft.csv")
DPO_CURVES = Path("reports/dpo.csv")


def interactive(results: Results, params: Params) -> str:
    """The page of the charts."""
    reference = params.evaluate.reference
    metrics = {key: column for key, column in VARIANT_COLUMNS.items() if key not in LEVEL_COLUMNS}
    sections = {
        "metrics": charts.metric_charts(results.variants, results.intervals, metrics, reference),
        "levels": charts.metric_charts(results.variants, results.intervals, LEVEL_COLUMNS, reference),
        "examples": charts.example_charts(results.replies, results.scores, reference),
        "curves": charts.curve_charts(results.dpo, results.sft),
        "movement": charts.movement_charts(results.dpo),
    }
    return charts.page("Attune: metrics, dialogues and training", lead(results, params), sections, movement.HEALTHY)


def main(params: Params) -> None:
    """Write the pages."""
    tidy()
    results = read(params)
    told = ("Attune: replies side by side", lead(results, params), MACHINE)
    pages = {
        SUMMARY: summary(results, params),
        SAMPLES: samples(results, params.seed),
        BROWSER: samples_page.page(results.replies, results.scores, *told),
        REPORT: interactive(results, params),
        SFT_CURVES: curves.sft_csv(results.sft),
        DPO_CURVES: curves.dpo_csv(results.dpo),
    }
    # Only once all of them are made, so that they belong together.
    for path, text in pages.items():
        write_text(path, text)


if __name__ == "__main__":
    with reported():
        stage_arguments(__doc__)
        main(load())
