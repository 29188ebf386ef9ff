"""The embedded sample of EPITOME annotations equals its generator's output, and its README is correct."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from attune.corpora.readers import empathetic_dialogues
from attune.tools.sample_data.epitome import FILES, HEADER, make_files, write_sample
from attune.tools.sample_data.replies import SHARES
from attune.tools.sample_data.text import load_phrases

SAMPLE = Path(__file__).resolve().parents[1] / "data/sample"
MEND = "the tracked sample differs from its phrases: run `python -m attune sample epitome` and track the files"


def rows(file):
    with (SAMPLE / "epitome" / file).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def phrases():
    return load_phrases(SAMPLE / "epitome_phrases.yaml"), load_phrases(SAMPLE / "replies.yaml")


def test_tracked_files_are_what_the_generator_writes(tmp_path):
    write_sample(SAMPLE / "epitome_phrases.yaml", tmp_path)
    assert {path.name for path in (SAMPLE / "epitome").iterdir()} == set(FILES.values())
    for file in FILES.values():
        assert (tmp_path / file).read_bytes() == (SAMPLE / "epitome" / file).read_bytes(), MEND


def test_files_hold_the_same_pairs_in_the_published_columns():
    er, ip, ex = ([tuple(row[name] for name in HEADER[:4]) for row in rows(file)] for file in FILES.values())
    assert er == ip == ex
    assert len({row[:2] for row in er}) == len(er) == 640
    assert tuple(rows(FILES["er"])[0]) == HEADER
    assert Counter(Counter(row[0] for row in er).values()) == {1: 512, 2: 64}
    assert len({row[2] for row in er}) == len({row[0] for row in er}), "two posts are equal"
    assert not any(re.search(r"\$|\||\{|  ", text) for row in er for text in row)


@pytest.mark.parametrize("mechanism", FILES)
def test_levels_follow_from_the_text(mechanism):
    """Every rationale stands in its response; there is one where the level is not 0; no level is rare."""
    levels = Counter()
    for row in rows(FILES[mechanism]):
        parts = row["rationales"].split("|")
        assert parts.pop() == ""
        assert all(part and part in row["response_post"] for part in parts)
        assert bool(parts) is (row["level"] != "0")
        levels[int(row["level"])] += 1
    assert [100 * levels[level] / levels.total() for level in range(3)] == pytest.approx(SHARES[mechanism], abs=6)


def test_readme_counts_the_levels():
    text = (SAMPLE / "README.md").read_text(encoding="utf-8")
    for file in FILES.values():
        levels = Counter(row["level"] for row in rows(file))
        cells = [file.removesuffix(".csv"), "640", *(str(levels[level]) for level in "012")]
        (line,) = [line for line in text.splitlines() if f"`{cells[0]}`" in line]
        assert [cell.strip(" `") for cell in line.strip("|").split("|")] == cells


def test_clauses_of_different_levels_are_different():
    """A clause carries the same mechanism and level wherever it stands."""
    clauses = phrases()[1]
    keys = {"none", *(f"{mechanism}{level}" for mechanism in FILES for level in (1, 2))}
    parts = [clauses["shared"], *clauses["families"].values(), *clauses["emotions"].values()]
    found = {(clause, key) for part in parts for key in keys & part.keys() for clause in part[key]}
    assert [clause for clause, n in Counter(clause for clause, _ in found).items() if n > 1] == []


def test_posts_are_none_of_the_corpus():
    """Its first turns are about other situations, so that no annotated pair is of a held-out dialogue."""
    dialogues, _ = empathetic_dialogues.read(SAMPLE / "empatheticdialogues")
    turns = {turn.text for dialogue in dialogues if dialogue.split != "train" for turn in dialogue.turns}
    texts = {row[name] for row in rows(FILES["er"]) for name in ("seeker_post", "response_post")}
    assert not {text for text in texts & turns if len(text.split()) >= 8 or text.count(".") > 1}


def test_another_post_leaves_the_other_emotions_as_they_are():
    situations, clauses = phrases()
    before = make_files(situations, clauses)[FILES["er"]].splitlines()
    situations["sad"]["posts"].append("I miss $who and the $what.")
    after = make_files(situations, clauses)[FILES["er"]].splitlines()
    changed = [one for one, other in zip(before, after, strict=True) if one != other]
    assert changed and all(line.startswith("sad") for line in changed)
