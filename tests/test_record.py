"""The pages that `python -m stages.record` writes from its records."""

import pytest

from stages.record import EMPO, TABLE_1, beside_empo, headline, page

VALUES = {"bleu_1": 12.0, "rouge_l": 10.0, "diff_er": 0.5, "diff_ex": 0.6, "diff_ip": 0.7, "bertscore_f1": 61.25}


def record(name="sample", **more):
    return {
        "name": name,
        "command": f"python -m stages.record {name}",
        "commit": "0123456789abcdef",
        "date": "2024-01-31",
        "machine": {"processor": "x", "cores": 2, "memory_gib": 8, "gpu": None}
        | dict.fromkeys(("torch", "transformers", "trl", "python"), "1"),
        "wall_seconds": {"base": 10.0, "sft": 20.0},
        "data": {"train_dialogues": 100, "test_dialogues": 10},
        "pairs": {"e1": {"pairs": 64}},
        "metrics": {"base": VALUES, "sft": VALUES | {"diff_er": 0.25}},
        "signature": {"base": {"bertscore_encoder": "some-encoder"}},
        **more,
    }


def measured(name="sample"):
    bounds = {"diff_er.low": 0.2, "diff_er.high": 0.3, "diff_er.diff_low": -0.3, "diff_er.diff_high": -0.2}
    return record(
        name,
        mmlu={"base": {"acc": 25.0, "acc_stderr": 1.0}, "sft": {"acc": 26.0, "acc_stderr": 0.0}},
        intervals={"base": {"rouge_l.low": 9.0, "rouge_l.high": 11.0}, "sft": bounds},
    )


def rows(text):
    """The cells of every table row, by the name in its first column; of two tables the cells after each other."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| "):
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(name, []).extend(cells)
    return found


def test_the_headline_has_both_tables_with_their_margins():
    found = rows(headline(measured()))
    assert found["variant"][:5] == ["MMLU ↑", "diff-ER ↓", "diff-EX ↓", "diff-IP ↓", "F-BERT ↑"]
    assert found["base"][:5] == ["25.0 ± 2.0", "0.500", "0.600", "0.700", "61.2"]
    # A standard error of 0 is no interval.
    assert found["sft"][:2] == ["26.0", "0.250 ± 0.050*"]
    assert "10.00 ± 1.00" in found["base"]


def test_a_record_without_these_stages_is_still_shown():
    found = rows(headline(record()))
    assert found["base"][:2] == ["\u2013", "0.500"]


def test_empos_table_stands_beside_ours_for_its_record_alone():
    text = page([measured(EMPO)])
    assert rows(beside_empo(measured(EMPO)))["Zephyr-7B, SFT + DPO"] == ["57.2", "0.660", "0.627", "0.648", "72.8"]
    assert all(name in text for name in TABLE_1) and "F-BERT is over some-encoder" in text
    assert "No number of one compares to one of the other" in text
    assert "Zephyr" not in page([measured()])


@pytest.mark.parametrize("metric", ["mmlu", "diff_er", "diff_ex", "diff_ip", "bertscore_f1"])
def test_every_row_of_the_papers_table_has_every_column(metric):
    assert all(metric in row for row in TABLE_1.values())
