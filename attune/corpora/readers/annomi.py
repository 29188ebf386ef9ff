"""AnnoMI (Wu et al. 2022, research use): demonstrations of motivational interviewing to `Dialogue` records.

`AnnoMI-simple.csv` has a row for each utterance, `AnnoMI-full.csv` a row for each utterance and annotator (column
`annotator_id`); seven transcripts have ten annotators, the others have one. The most frequent annotation counts, and in
a tie that of the annotator with the lowest id. On the published files this gives the acts of the simple file, ties
included.

The client is the user, the therapist the assistant. The act of a therapist's turn is the main behaviour (question,
reflection, therapist_input, other), of a client's turn the talk type (change, neutral, sustain). The label is the
topic, or several separated by semicolons; the quality is the transcript's (high, low).

The corpus has no split. `split_groups` splits the videos, since some have several transcripts, in two strata: those
with and without a transcript of low quality.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from attune.corpora.readers.csv_rows import (
    Row,
    differing,
    empty,
    first_problem,
    grouped,
    number,
    one_of,
    read_rows,
    refuse,
)
from attune.corpora.splits import split_groups
from attune.data.dialogue import Dialogue, Role, Turn, join_turns

CORPUS = "annomi"
SIMPLE = "AnnoMI-simple.csv"
ROLES: dict[str, Role] = {"therapist": "assistant", "client": "user"}
BEHAVIOURS = ("question", "reflection", "therapist_input", "other")
TALK_TYPES = ("change", "neutral", "sustain")
QUALITIES = ("high", "low")
TRANSCRIPT = ["mi_quality", "topic", "video_url"]
UTTERANCE = ["interlocutor", "utterance_text"]
ACT = {"therapist": "main_therapist_behaviour", "client": "client_talk_type"}
ACTS = {"therapist": BEHAVIOURS, "client": TALK_TYPES}
COLUMNS = ["transcript_id", "utterance_id", *TRANSCRIPT, *UTTERANCE, *ACT.values()]
ANNOTATOR = "annotator_id"


def read(folder: Path, file: str = SIMPLE) -> tuple[list[Dialogue], Counter[str]]:
    """Read one of the two files.

    Returns:
        The transcripts in file order, and the number of utterances with a tie, `<split>_tied_label`.

    Raises:
        DataError: the file is missing, is no UTF-8 or no csv, or rows do not fit; each is named by its line.
    """
    path = folder / file
    rows = read_rows(path, COLUMNS, _problem)
    transcripts = grouped(path, rows, "transcript_id")
    refuse(path, [problem for some in transcripts.values() for problem in differing(some, TRANSCRIPT)])
    splits = _splits([some[0].fields for some in transcripts.values()])
    dialogues, dropped = [], Counter[str]()
    for name, some in transcripts.items():
        first = some[0].fields
        split = splits[first["video_url"]]
        turns, ties = _turns(path, some)
        if ties:
            dropped[f"{split}_tied_label"] += ties
        dialogues.append(Dialogue(f"{split}/{name}", CORPUS, split, first["topic"], turns, first["mi_quality"]))
    return dialogues, dropped


def majority(votes: Sequence[str]) -> tuple[str, bool]:
    """The most frequent vote, the first of them in a tie, and whether there is a tie.

    Args:
        votes: in order of the annotators' ids.
    """
    counts = Counter(votes).most_common()
    return counts[0][0], len(counts) > 1 and counts[0][1] == counts[1][1]


def _splits(transcripts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    with_low = {fields["video_url"] for fields in transcripts if fields["mi_quality"] == "low"}
    return split_groups({fields["video_url"]: str(fields["video_url"] in with_low) for fields in transcripts})


def _turns(path: Path, rows: Sequence[Row]) -> tuple[tuple[Turn, ...], int]:
    """The joined turns of a transcript, and the number of ties."""
    utterances: dict[int, list[Row]] = {}
    for row in rows:
        utterances.setdefault(int(row.fields["utterance_id"]), []).append(row)
    turns, ties = [], 0
    for _, some in sorted(utterances.items()):
        refuse(path, differing(some, UTTERANCE) + _repeated(some))
        first = some[0].fields
        speaker = first["interlocutor"]
        some.sort(key=lambda row: int(row.fields.get(ANNOTATOR, "0")))
        act, tied = majority([row.fields[ACT[speaker]] for row in some])
        ties += tied
        turns.append(Turn(ROLES[speaker], first["utterance_text"], act))
    return join_turns(turns), ties


def _repeated(rows: Sequence[Row]) -> list[tuple[int, str]]:
    """A problem for each repeated row of an utterance by one annotator; without the column, for each repeated row."""
    seen: dict[str | None, int] = {}
    problems = []
    for row in rows:
        annotator = row.fields.get(ANNOTATOR)
        if annotator in seen:
            problems.append((row.line, f"utterance_id {row.fields['utterance_id']} is also in line {seen[annotator]}"))
        seen.setdefault(annotator, row.line)
    return problems


def _problem(fields: dict[str, str]) -> str | None:
    """The problem of a row, or None."""
    return first_problem(
        empty(fields, ["transcript_id", "topic", "video_url", "utterance_text"]),
        number(fields, "utterance_id"),
        number(fields, ANNOTATOR) if ANNOTATOR in fields else None,
        one_of(fields, "mi_quality", QUALITIES),
        one_of(fields, "interlocutor", tuple(ROLES)),
    ) or one_of(fields, ACT[fields["interlocutor"]], ACTS[fields["interlocutor"]])
