"""The interactive page of the report in a browser: light, dark and as narrow as a phone; hover, links, hostile text."""

import pytest
from helpers import open_browser

from attune.report.charts import curve_charts, example_charts, metric_charts, movement_charts, page, standing
from attune.report.read import DpoCurves
from attune.report.samples import MACHINE
from attune.report.samples_page import page as samples_page

HOSTILE = "</script><script>document.title = 'taken'</script>"
VARIANTS = {"base": {"bleu_1": 10.0}, "sft": {"bleu_1": 20.0}, HOSTILE: {"bleu_1": 5.0}}
INTERVALS = {
    "base": {"bleu_1.low": 9.0, "bleu_1.high": 11.0},
    "sft": {"bleu_1.low": 19.0, "bleu_1.high": 21.0, "bleu_1.diff_low": 8.0, "bleu_1.diff_high": 12.0},
}
CURVES = DpoCurves(
    {"rewards/chosen": [(1, 0.0), (9, 0.5)], "rewards/rejected": [(1, 0.0), (9, -0.5)],
     "rewards/accuracies": [(1, 0.0), (9, 0.75)]},
    {"e1": 9},
)  # fmt: skip
COUNT = 30


def replies(text):
    turn = {"role": "user", "text": f"My dog died. {HOSTILE}"}
    rows = [
        {"id": f"test/{i}", "label": "sad", "context": [turn], "reference": "Oh", "reply": f"{text} {i}"}
        for i in range(COUNT)
    ]
    return rows


REPLIES = {"base": replies("so"), "sft": replies("and")}
SCORES = {
    "base": {f"test/{i}": {"rouge_l": 15.0} for i in range(COUNT)},
    "sft": {f"test/{i}": {"rouge_l": float(i)} for i in range(COUNT)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The two pages, side by side as in `reports/`."""
    folder = tmp_path_factory.mktemp("reports")
    sections = {
        "metrics": metric_charts(VARIANTS, INTERVALS, {"bleu_1": ("BLEU-1 ↑", 2), "none": ("None", 1)}, "base"),
        "levels": [],
        "examples": example_charts(REPLIES, SCORES, "base"),
        "curves": curve_charts(CURVES, {"sft": [(1, 3.0), (9, float("nan")), (20, 2.0)]}),
        "movement": movement_charts(CURVES),
    }
    (folder / "report.html").write_text(page("A <run>", "Corpus & more", sections, "so"), encoding="utf-8")
    (folder / "samples.html").write_text(samples_page(REPLIES, SCORES, "Replies", "", MACHINE), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_every_chart_is_drawn_and_answers(browser, folder, width, scheme):
    problems = []
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    shown = context.new_page()
    shown.on("console", lambda message: problems.append(message.text))
    shown.on("pageerror", lambda error: problems.append(str(error)))
    shown.on("request", lambda request: request.url.startswith("file:") or problems.append(request.url))
    shown.goto((folder / "report.html").as_uri())
    for key in ("metrics-0", "examples-0", "curves-0", "curves-1", "curves-2"):
        shown.wait_for_selector(f"#{key} svg .mark-symbol path")
    assert shown.locator(".chart").count() == 5 and shown.locator("h2").count() == 3
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    dark = shown.evaluate("getComputedStyle(document.querySelector('#metrics-0 .role-axis-label text')).fill")
    assert (dark == "rgb(255, 255, 255)") == (scheme == "dark")

    # The dot of sft: the colour is the verdict, the tooltip has the numbers, the hostile name is text.
    dots = shown.locator("#metrics-0 .mark-symbol path")
    assert [dot.get_attribute("fill") for dot in dots.all()] == ["#0072b2", "#009e73", "#c4c4c4"]
    dots.nth(1).hover()
    assert shown.locator("#vg-tooltip-element").inner_text().split() == [
        "variant", "sft", "shown", "20.00", "[19.00,", "21.00]", "to", "reference", "better",
    ]  # fmt: skip
    dots.nth(2).hover()
    assert HOSTILE in shown.locator("#vg-tooltip-element").inner_text() and shown.title() == "A <run>"

    # Ten replies at each end are marked, and a dot opens its dialogue.
    marks = shown.locator("#examples-0 .mark-symbol path")
    fills = [mark.get_attribute("fill") for mark in marks.all()]
    assert (fills.count("#009e73"), fills.count("#d55e00"), len(fills)) == (10, 10, COUNT)
    with context.expect_page() as opened:
        marks.first.click()
    assert opened.value.locator("article h2 span").all_inner_texts() == [f"test/{COUNT - 1}"]
    assert problems == []
    context.close()


def test_standing_follows_the_arrow_and_the_interval():
    ends = {"x.diff_low": -3.0, "x.diff_high": -1.0, "y.diff_low": -1.0, "y.diff_high": 2.0}
    assert [standing("sft", ends, "x", better, "base") for better in (1, -1, 0)] == ["worse", "better", "differs"]
    assert standing("sft", ends, "y", 1, "base") == "no difference shown"
    assert standing("sft", ends, "z", 1, "base") == "no interval"
    assert standing("base", ends, "x", 1, "base") == "reference"
    assert standing("people", {}, "x", 1, "base") == "people"
