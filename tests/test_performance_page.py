"""docs/performance.md has the tables of the benchmarks' results."""

import pytest

from attune.runtime.errors import UserError
from benchmarks.measure import RESULTS
from benchmarks.page import PAGE, SECTIONS, block, page, read_results


def test_the_page_is_current():
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, read_results()) == text, "run python -m benchmarks.page"


def test_every_result_is_on_the_page():
    assert set(SECTIONS) >= read_results().keys()


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.json")))
def test_a_result_says_what_was_compared_and_where(name):
    text = PAGE.read_text(encoding="utf-8")
    for case in read_results()[name]["cases"].values():
        assert case["unit"] and {"processor", "cores", "gpu", "torch"} <= case["machine"].keys()
        for one in case["over"].values():
            assert 0 < one["low"] <= one["ratio"] <= one["high"]
            assert f"{one['ratio']:.2f} ({one['low']:.2f} to {one['high']:.2f})" in text


def test_cases_that_were_measured_on_two_machines_say_so():
    one = next(iter(read_results()["dpo"]["cases"].values()))
    other = {**one, "machine": one["machine"] | {"torch": "0.1"}}
    shown = block("dpo", {"cases": {"headline": one, "batch-1": one, "batch-4": other}})
    assert f"\n\nheadline, batch-1: {one['data']}; " in shown and f" batch-4: {one['data']}; " in shown
    assert shown.count("torch 0.1,") == 1


def test_a_mark_that_is_missing_is_an_error():
    with pytest.raises(UserError, match=r"performance\.md has no lines"):
        page("# Performance\n", read_results())
