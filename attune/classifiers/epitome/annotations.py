"""Annotated pairs of posts for the EPITOME classifiers, in the published format (Sharma et al. 2020).

One csv for each mechanism, with the columns `sp_id, rp_id, seeker_post, response_post, level, rationales`. Rationales
are parts of the response, each followed by a `|`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attune.classifiers.epitome.model import Classifiers
from attune.data.dialogue import normalise
from attune.runtime.errors import ModelError
from attune.runtime.io import read_records

FILES = {
    "emotional_reactions": "emotional-reactions-reddit.csv",
    "interpretations": "interpretations-reddit.csv",
    "explorations": "explorations-reddit.csv",
}
COLUMNS = ("seeker_post", "response_post", "level", "rationales")
IGNORED = -100  # torch's `ignore_index` of cross-entropy


@dataclass(frozen=True)
class Annotation:
    """A response to a seeker's post, its level, and the rationales of that level; None: the source has none."""

    seeker_post: str
    response_post: str
    level: int
    rationales: tuple[str, ...] | None


Annotations = Mapping[str, Sequence[Annotation]]
"""Those of each mechanism."""


@dataclass(frozen=True)
class Encoded:
    """T token ids of a response and T labels: 1 inside a rationale, 0 outside, IGNORED for special tokens."""

    seeker_post: str
    ids: list[int]
    rationale: list[int]
    level: int


def read_annotations(path: Path) -> list[Annotation]:
    """Read the csv of one mechanism.

    Raises:
        ModelError: the file is missing or empty, lacks a column, or has a level other than 0, 1, 2; names the line.
    """
    rows = read_records(path, COLUMNS, ModelError, "run `dvc repro download`, or set epitome.data=data/sample/epitome")
    if not rows:
        raise ModelError(f"{path} holds no rows")
    return [_annotation(row, f"{path}:{line}") for line, row in rows]


def _annotation(row: dict[str, str], where: str) -> Annotation:
    for column in ("seeker_post", "response_post"):
        if not row[column].strip():
            raise ModelError(f"{where}: empty {column}")
    if row["level"] not in ("0", "1", "2"):
        raise ModelError(f"{where}: level = {row['level'][:40]!r} is none of 0, 1, 2")
    parts = tuple(part.strip() for part in row["rationales"].split("|") if part.strip())
    return Annotation(row["seeker_post"], row["response_post"], int(row["level"]), parts)


def split_of(text: str) -> str:
    """The split of a post and all its responses, or of a dialogue: train (75 %), valid (5 %) or test (20 %).

    A keyed hash of the text decides, so that a post, or the context of a dialogue, is in the same split for every
    mechanism, run and file.
    """
    digest = hashlib.blake2b(normalise(text).encode(), key=b"epitome", digest_size=8).digest()
    fraction = int.from_bytes(digest, "big") / 2**64
    return "train" if fraction < 0.75 else "valid" if fraction < 0.80 else "test"


def rationale_spans(annotation: Annotation) -> list[tuple[int, int]]:
    """The (start, end) of the rationales in the lower-cased response; a rationale that does not occur has none.

    Matching ignores case and the kind of white space. Of several occurrences, the first one counts that overlaps no
    earlier rationale.
    """
    response = annotation.response_post.lower()
    spans: list[tuple[int, int]] = []
    for rationale in annotation.rationales or ():
        pattern = r"\s+".join(re.escape(word) for word in rationale.lower().split())
        matches = [match.span() for match in re.finditer(pattern, response)]
        free = [(a, b) for a, b in matches if not any(a < end and start < b for start, end in spans)]
        spans += (free or matches)[:1]
    return spans


def encode(classifiers: Classifiers, annotations: Sequence[Annotation]) -> list[Encoded]:
    """Token ids of the responses, lower-cased and cut; a token that overlaps a rationale is labelled 1."""
    if not annotations:
        return []
    texts = [annotation.response_post.lower() for annotation in annotations]
    cut = {"truncation": True, "max_length": classifiers.max_length}
    encoded = classifiers.tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True, **cut)
    return [
        Encoded(
            annotation.seeker_post,
            encoded["input_ids"][i],
            token_labels(annotation, encoded["offset_mapping"][i], encoded["special_tokens_mask"][i]),
            annotation.level,
        )
        for i, annotation in enumerate(annotations)
    ]


def token_labels(annotation: Annotation, offsets: Sequence[tuple[int, int]], special: Sequence[int]) -> list[int]:
    """A label of each of T tokens of the response: 1 if it overlaps a rationale, 0, or IGNORED.

    Args:
        annotation: without rationales all labels are IGNORED.
        offsets: (T,) start and end in the lower-cased response.
        special: (T,) 1 for special tokens, which are IGNORED.
    """
    if annotation.rationales is None:
        return [IGNORED] * len(offsets)
    spans = rationale_spans(annotation)
    inside = [int(any(a < end and start < b for start, end in spans)) for a, b in offsets]
    return [IGNORED if s else label for s, label in zip(special, inside, strict=True)]
