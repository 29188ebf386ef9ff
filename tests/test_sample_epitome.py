"""The embedded sample of EPITOME annotations equals its generator's output, and its README is correct."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from attune.tools.sample_data.dialogues import load_phrases
from attune.tools.sample_data.epitome import FILES, HEADER, make_files, write_sample

SAMPLE = Path(__file__).resolve().parents[1] / "data/sample"
MEND = "the tracked sample differs from its phrases: run `python -m attune sample epitome` and track the files"


def rows(file):
    with (SAMPLE / "epitome" / file).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_tracked_files_are_what_the_generator_writes(tmp_path):
    write_sample(SAMPLE / "epitome_phrases.yaml", tmp_path)
    assert {path.name for path in (SAMPLE / "epitome").iterdir()} == set(FILES)
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (SAMPLE / "epitome" / file).read_bytes(), MEND


def test_files_hold_the_same_pairs_in_the_published_columns():
    pairs = [[(row["sp_id"], row["rp_id"], row["seeker_post"], row["response_post"]) for row in rows(f)] for f in FILES]
    assert pairs[0] == pairs[1] == pairs[2]
    assert len({row[:2] for row in pairs[0]}) == len(pairs[0]) == 240
    assert tuple(rows(FILES[0])[0]) == HEADER
    answers = Counter(row[0] for row in pairs[0])
    assert Counter(answers.values()) == {1: 160, 2: 40}
    assert not any(re.search(r"\$|\||  ", text) for row in pairs[0] for text in row)


@pytest.mark.parametrize("file", FILES)
def test_levels_follow_from_the_text(file):
    """Every rationale occurs in its response; there is one where the level is not 0; no level is rare."""
    for row in rows(file):
        parts = row["rationales"].split("|")
        assert parts.pop() == ""
        assert all(part and part in row["response_post"] for part in parts)
        assert bool(parts) is (row["level"] != "0")
    levels = Counter(row["level"] for row in rows(file))
    assert set(levels) == {"0", "1", "2"} and min(levels.values()) >= 35 and max(levels.values()) <= 130


def test_readme_counts_the_levels():
    text = (SAMPLE / "README.md").read_text(encoding="utf-8")
    for file in FILES:
        levels = Counter(row["level"] for row in rows(file))
        cells = [file.removesuffix(".csv"), "240", *(str(levels[level]) for level in "012")]
        (line,) = [line for line in text.splitlines() if f"`{cells[0]}`" in line]
        assert [cell.strip(" `") for cell in line.strip("|").split("|")] == cells


def test_sentences_of_different_levels_are_different():
    phrases = load_phrases(SAMPLE / "epitome_phrases.yaml")
    pools = [phrases["plain"], *phrases["react"].values(), phrases["interpret"]["weak"], phrases["explore"]["weak"]]
    for topic in phrases["topics"]:
        pools += [topic["interpret"], topic["explore"], topic["advice"]]
    sentences = [sentence for pool in pools for sentence in pool]
    repeated = [sentence for sentence, n in Counter(sentences).items() if n > 1]
    assert repeated == []


def test_another_phrase_leaves_the_other_topics_as_they_are():
    phrases = load_phrases(SAMPLE / "epitome_phrases.yaml")
    before = make_files(phrases)[FILES[0]].splitlines()
    phrases["topics"][0]["advice"].append("Paint the walls.")
    after = make_files(phrases)[FILES[0]].splitlines()
    changed = [one for one, other in zip(before, after, strict=True) if one != other]
    assert changed and all(int(line[1:4]) % len(phrases["topics"]) == 0 for line in changed)
