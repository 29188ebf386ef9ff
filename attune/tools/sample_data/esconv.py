"""Generate the embedded sample of emotional support conversations from data/sample/esconv_phrases.yaml.

`python -m attune sample esconv` writes data/sample/esconv_sample/{train,valid,test}.txt in the format of ESConv's three
files. Each phrase of a supporter is written for one strategy, so that it can be learnt from the text. The same phrases
and seed give the same bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from attune.tools.sample_data.files import write_files
from attune.tools.sample_data.text import load_phrases

SEED = 20
SPLITS = {"train": 120, "valid": 24, "test": 24}
# The supporter's strategies for each step, in the order of the conversation.
STEPS = (
    ("Question",),
    ("Restatement or Paraphrasing", "Reflection of feelings"),
    ("Reflection of feelings", "Restatement or Paraphrasing", "Question"),
    ("Self-disclosure", "Affirmation and Reassurance", "Others"),
    ("Providing Suggestions", "Information"),
    ("Information", "Providing Suggestions", "Affirmation and Reassurance"),
)

Phrases = Mapping[str, Any]
Turns = list[dict[str, str]]


def draw_conversation(phrases: Phrases, number: int, attempt: int) -> dict[str, Any]:
    """Conversation `number`, as a record of the format, from a random stream for this draw alone."""
    rng = random.Random(f"{SEED}:{number}:{attempt}")
    name = list(phrases["problems"])[number % len(phrases["problems"])]
    problem = phrases["problems"][name]
    fills = {slot: rng.choice(values) for slot, values in problem["slots"].items()}
    first, last = rng.choice(("3", "4", "5")), rng.choice(("1", "2"))
    return {
        "experience_type": rng.choice(("Current Experience", "Previous Experience")),
        "emotion_type": rng.choice(problem["emotions"]),
        "problem_type": name,
        "situation": Template(problem["situation"]).substitute(fills),
        "survey_score": {
            "seeker": {"initial_emotion_intensity": first, "empathy": "5", "final_emotion_intensity": last},
            "supporter": {"relevance": "5"},
        },
        "dialog": _dialog(phrases, problem, fills, rng),
    }


def _dialog(phrases: Phrases, problem: Phrases, fills: Mapping[str, str], rng: random.Random) -> Turns:
    """The turns; half of the supporters speak first, and sometimes one side has two turns, as in the original."""
    used: set[str] = set()

    def new(lines: list[str]) -> str:
        text = rng.choice([line for line in lines if line not in used] or lines)
        used.add(text)
        return Template(text).substitute(fills)

    def supporter(strategy: str) -> dict[str, str]:
        lines = problem["supporter"].get(strategy, []) + phrases["supporter"].get(strategy, [])
        return {"text": new(lines), "speaker": "sys", "strategy": strategy}

    def seeker(lines: list[str]) -> dict[str, str]:
        return {"text": new(lines), "speaker": "usr"}

    turns: Turns = []
    if rng.random() < 0.5:
        turns.append({"text": new(phrases["greet"]), "speaker": "sys", "strategy": "Others"})
    turns.append(seeker(problem["open"]))
    for step in STEPS:
        strategies = rng.sample(step, 2 if len(step) > 1 and rng.random() < 0.15 else 1)
        turns += [supporter(strategy) for strategy in strategies]
        turns += [seeker(phrases["answers"])] if rng.random() < 0.5 else []
        turns += [seeker(problem["tell"])] if turns[-1]["speaker"] == "sys" or rng.random() < 0.4 else []
    turns.append(seeker(phrases["close"]["seeker"]))
    turns.append({"text": new(phrases["close"]["supporter"]), "speaker": "sys", "strategy": "Others"})
    return turns


def make_files(phrases: Phrases) -> dict[str, str]:
    """The text of each split's file, by the name of the split; all conversations differ."""
    seen: set[str] = set()
    records: list[dict[str, Any]] = []
    attempt = 0
    while len(records) < sum(SPLITS.values()):
        record = draw_conversation(phrases, len(records), attempt)
        key = json.dumps(record["dialog"])
        attempt += 1
        if key not in seen:
            seen.add(key)
            records.append(record)
            attempt = 0
    files, start = {}, 0
    for split, count in SPLITS.items():
        lines = (json.dumps(record, ensure_ascii=False) for record in records[start : start + count])
        files[split] = "\n".join([*lines, ""])
        start += count
    return files


def write_sample(phrases_path: Path, folder: Path) -> None:
    """Write the three files into a folder."""
    write_files({f"{split}.txt": text for split, text in make_files(load_phrases(phrases_path)).items()}, folder)
