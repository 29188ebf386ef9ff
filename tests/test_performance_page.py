"""docs/performance.md has the tables of the benchmarks' results."""

import pytest

from benchmarks.measure import RESULTS
from benchmarks.page import PAGE, SECTIONS, page, read_results

KEYS = {"ratio", "low", "high", "peer", "unit"}


def test_the_page_is_current():
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, read_results()) == text, "run python -m benchmarks.page"


def test_every_result_is_on_the_page():
    assert {name for names in SECTIONS.values() for name in names} >= read_results().keys()


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.json")))
def test_a_result_says_what_was_compared_and_where(name):
    result = read_results()[name]
    assert result.keys() >= KEYS | {"cases", "machine"}
    assert 0 < result["low"] <= result["ratio"] <= result["high"]
    assert {"processor", "cores", "gpu", "torch"} <= result["machine"].keys()
    for case in result["cases"].values():
        assert 0 < case["low"] <= case["ratio"] <= case["high"]
    text = PAGE.read_text(encoding="utf-8")
    assert f"{result['ratio']:.2f} ({result['low']:.2f} to {result['high']:.2f})" in text


def test_a_mark_that_is_missing_is_an_error():
    with pytest.raises(ValueError, match="not enough values"):
        page("# Performance\n", read_results())
