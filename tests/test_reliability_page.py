"""docs/reliability.md has the tables of the campaigns' files."""

import pytest
from reliability import PAGE, SECTIONS, page, results

RECORD = {"command": "python -m pytest x --record", "rows": [{"what": "a | b", "cases": 1200, "failures": 0}]}


def test_the_page_is_current():
    """Mend it with `PYTHONPATH=. python tests/reliability.py`."""
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, results()) == text


def test_a_campaign_is_a_table_in_its_own_section():
    text = PAGE.read_text(encoding="utf-8")
    made = page(text, {name: RECORD for name in SECTIONS if name != "kill"})
    assert made.count("Not counted yet.") == 1 and made.count("1,200") == len(SECTIONS) - 1
    assert made.count(r"a \| b") == len(SECTIONS) - 1 and "`python -m pytest x --record`." in made
    assert page(made, results()) == text


def test_a_campaign_without_a_section_is_an_error():
    with pytest.raises(ValueError, match=r"other has no section in reliability\.md"):
        page(PAGE.read_text(encoding="utf-8"), {"other": RECORD})
