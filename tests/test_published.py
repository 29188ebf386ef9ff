"""EmPO's published systems as a record."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from test_epitome_levels import put
from test_record import record, rows

from attune.classifiers.epitome.published_levels import read_levels
from attune.config.params import load
from attune.generation.made_elsewhere import read as read_replies
from attune.report.published_page import agreement, difference
from attune.report.tables import PEOPLE
from attune.runtime.errors import DataError, UserError
from attune.tools import published
from attune.tools.rated import read as read_ratings
from attune.tools.record import main, page
from attune.tools.score import score_rows

REFERENCES = ("i am so sorry to hear that", "that is great news", "what happened then")


@pytest.fixture
def params():
    return load(ROOT / "params.yaml")


def write(path, header, lines):
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return Path(path)


def system(folder, name, replies, levels=None):
    header = ["emotion", "context", "reference", "reply", *(f"reference_level_{one}" for one in published.SHORTS)]
    lines = [
        ["sad", f"context {i}", reference, reply, 0, 1, 2]
        for i, (reference, reply) in enumerate(zip(REFERENCES, replies, strict=True))
    ]
    if levels:
        header += [f"level_{one}" for one in published.SHORTS]
        lines = [[*line, *given] for line, given in zip(lines, levels, strict=True)]
    return write(folder / f"replies-{name}.csv", header, lines)


def scored(path, params, human=False):
    found, dropped = read_replies(path)
    if human:
        found = [published.replace(row, reply=row.reference, reference=None) for row in found]
    return score_rows(path, found, dropped, False, params)


@pytest.fixture
def whole(tmp_path, params):
    """A record of two systems and people, on three dialogues, without models."""
    paths = {
        "base": system(tmp_path, "base", ("oh no", "oh", "oh dear"), [(0, 0, 0), (1, 1, 1), (2, 2, 2)]),
        "sft-dpo": system(tmp_path, "sft-dpo", REFERENCES),
    }
    systems = {name: scored(path, params) for name, path in paths.items()}
    systems[PEOPLE] = scored(paths["base"], params, human=True)
    metrics, intervals = published.measured(systems, params)
    levels, level_intervals = published.published_levels(paths, params)
    scales = {name: {"mean": value, "empathetic": value} for name, value in (("base", 75.0), ("people", 65.0))}
    made = record("empo-7b", metrics=metrics, intervals=intervals, left_out=["a | note"])
    del made["pairs"], made["wall_seconds"]
    return made | {
        "data": {"replies": dict.fromkeys(systems, 3)},
        "signature": {name: one.signature for name, one in systems.items()},
        "ratings": {"metrics": scales, "intervals": {name: {} for name in scales}},
        "published_levels": {"metrics": levels, "intervals": level_intervals},
    }


def test_every_system_is_compared_with_the_base_and_people_have_what_needs_no_reference(whole):
    metrics, ends = whole["metrics"], whole["intervals"]
    assert metrics["sft-dpo"]["rouge_l"] == 100 and metrics["base"]["rouge_l"] == 0
    assert ends["sft-dpo"]["rouge_l.diff"] == 100 and "rouge_l.diff" not in ends["base"]
    # 7, 4 and 3 words, those of the references.
    assert metrics[PEOPLE]["reply_words"] == metrics["sft-dpo"]["reply_words"] == pytest.approx(14 / 3, abs=1e-4)
    assert "rouge_l" not in metrics[PEOPLE] and ends[PEOPLE]["reply_words.diff"] == pytest.approx(3, abs=1e-4)


def test_published_levels_by_hand(whole):
    found = whole["published_levels"]["metrics"]
    # Levels 0, 1, 2 of every mechanism against 0 of ER, 1 of IP and 2 of EX.
    assert found["base"] == {
        **{f"level_{one}": 1.0 for one in published.SHORTS},
        "diff_er": 1.6667, "diff_ip": 0.6667, "diff_ex": 1.6667,
    }  # fmt: skip
    assert found[PEOPLE] == {"level_er": 0.0, "level_ip": 1.0, "level_ex": 2.0} and "sft-dpo" not in found


def test_agreement_is_that_of_held_out_dialogues(tmp_path, params):
    """Levels that equal the published ones there and nowhere else."""
    put(tmp_path, "base", shift=1)
    put(tmp_path, "sft-dpo", own=False)
    paths = {name: tmp_path / f"replies-{name}.csv" for name in ("base", "sft-dpo")}
    systems = {name: scored(path, params) for name, path in paths.items()}
    systems[PEOPLE] = scored(paths["base"], params, human=True)
    assert published.agreement_with_published(tmp_path, systems) == {}
    published_rows = read_levels(tmp_path)
    for name in ("base", PEOPLE):
        own = [row for row in published_rows if row.system == name]
        levels = [row.levels["explorations"] if row.split == "test" else 2 - row.levels["explorations"] for row in own]
        columns = {f"level_{short}": levels for short in published.SHORTS}
        systems[name] = replace(systems[name], scores=systems[name].scores.assign(**columns))
    found = published.agreement_with_published(tmp_path, systems)
    held_out = sum(row.split == "test" for row in published_rows) // 2
    assert found["dialogues"] == held_out > 0 and found["levels"]["er"]["all"]["n"] == 2 * held_out
    assert {one["kappa"] for short in published.SHORTS for one in found["levels"][short].values()} == {1.0}
    assert found["differences"]["base"]["diff_er"] == found["differences"]["base"]["published_diff_er"] > 0
    shown = rows(agreement(found))
    assert shown["people"] == ["1.00"] * 3 + ["\u2013"] * 6 and len(shown["base"]) == 9


def test_the_section_has_a_row_for_each_system(whole):
    text = page([record("empo"), whole])
    section = text.partition("## empo-7b")[2]
    found = rows(section)
    assert "100.00" in found["sft-dpo"][1] or any(cell.startswith("100.00") for cell in found["sft-dpo"])
    assert found["ROUGE-L ↑"] == ["+100.00 (+100.00 to +100.00)*", "\u2013"]
    assert found["words"][1] == "+3.0 (+1.0 to +5.0)*"
    assert "`python -m attune record empo-7b`, commit 0123456789ab" in section and "- a \\| note" in section
    assert "75.0" in found["base"] and "65.0" in found["people"]


def test_a_difference_that_excludes_nothing_has_no_star():
    ends = {"rouge_l.diff": 0.5, "rouge_l.diff_low": -0.25, "rouge_l.diff_high": 1.25}
    assert difference(ends, "rouge_l", 2) == "+0.50 (-0.25 to +1.25)" and difference({}, "rouge_l", 2) == "\u2013"


def test_people_must_have_rated_the_same_dialogues(tmp_path, params):
    header = ["context", "system", "reply", "reference", "rating"]
    lines = [[f"c {i}", name, f"r {i}", "x", 50] for name in (*published.SYSTEMS, PEOPLE) for i in range(3)]
    metrics, _ = published.rated_systems(read_ratings(write(tmp_path / "all.csv", header, lines)), params)
    assert metrics["sft"] == {"rating": 50.0, "mean": 50.0}
    with pytest.raises(DataError, match=r"^ratings\.csv: people: people rated other dialogues than of base$"):
        published.rated_systems(read_ratings(write(tmp_path / "less.csv", header, lines[:-1])), params)


def test_a_recipe_and_the_published_replies_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        main(["empo", "--published"])
    assert "--published runs no recipe" in capsys.readouterr().err


def test_without_the_corpus_the_error_names_the_files(tmp_path, monkeypatch, params):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("CORPORA_DIR", raising=False)
    with pytest.raises(UserError, match=r"put replies-base\.csv, replies-base-30\.csv, .* into <folder>/empo_human"):
        published.results(params)


@pytest.mark.corpora
def test_the_published_numbers(corpora_dir, params):
    """People rank base first and the human replies last; the published levels give the published differences."""
    folder = corpora_dir / "empo_human"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    metrics, ends = published.rated_systems(read_ratings(folder / "ratings.csv"), params)
    means = {name: round(values["mean"], 1) for name, values in metrics.items()}
    assert means == {"base": 75.9, "base-30": 69.1, "sft": 67.0, "sft-dpo": 69.4, "people": 65.8}
    assert ends["sft-dpo"]["mean.diff_high"] < 0
    paths = {name: folder / f"replies-{name}.csv" for name in published.SYSTEMS}
    levels, _ = published.published_levels(paths, params)
    assert list(levels) == ["base", "base-30", "sft", PEOPLE]
    known = {"base": (1.120, 1.441, 0.603), "base-30": (1.090, 0.655, 0.613), "sft": (0.944, 0.647, 0.726)}
    for name, expected in known.items():
        assert np.allclose([levels[name][f"diff_{one}"] for one in ("er", "ex", "ip")], expected, atol=6e-4)


def test_the_committed_record_is_what_the_page_shows():
    path = ROOT / "docs/results/empo-7b.json"
    if not path.is_file():
        pytest.skip("not recorded")
    numbers = json.loads(path.read_text(encoding="utf-8"))
    assert set(numbers["metrics"]) == {*published.SYSTEMS, PEOPLE}
    assert "## empo-7b" in (ROOT / "docs/results.md").read_text(encoding="utf-8")
