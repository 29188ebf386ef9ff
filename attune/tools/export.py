"""Write what the pipeline made in the formats of other programs.

    python -m attune export pairs e1 -o e1.jsonl
    python -m attune export pairs e1 e2 e3 -o all.jsonl

writes the preference pairs of rounds in TRL's conversational format with explicit prompt, an object a line: prompt (a
list of messages), chosen and rejected (a message each), and what the pipeline knows of a pair (id, label, …). Pairs of
several rounds have a column epoch. Rule `file` reads such files (docs/bring-your-own.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attune.config.params import load, named
from attune.config.schema import Params, chain
from attune.data.dialogue import to_turns
from attune.models.chat_template import messages
from attune.runtime.arrow_stream import read_batches
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError
from attune.runtime.io import whole_file

PAIRS = Path("data/pairs")
# `messages` has the first three; the others hold the state of DPO.
NOT_COPIED = ("prompt", "chosen", "rejected", "epoch", "future_rejected")


def pair_lines(params: Params, rounds: Sequence[str]) -> Iterator[str]:
    """The pairs of rounds as lines of JSON; each has an `epoch` if there are several rounds.

    Raises:
        ParamsError: there is no such round.
        UserError: a round has no pairs yet, or two rounds are of the same epoch.
    """
    epochs: dict[int, str] = {}
    for key in rounds:
        named(params.rounds, key, "rounds")
        epoch = len(chain(params.rounds, key))
        if (other := epochs.setdefault(epoch, key)) != key or rounds.count(key) > 1:
            raise UserError(f"rounds {other} and {key} are both of epoch {epoch}: export them to two files")
        if not (PAIRS / f"{key}.parquet").is_file():
            raise UserError(f"{PAIRS}/{key}.parquet is missing: run `dvc repro pairs@{key}`")
    for epoch, key in epochs.items():
        for batch in read_batches(PAIRS / f"{key}.parquet"):
            for row in batch.to_pylist():
                line = conversational(row) | ({"epoch": epoch} if len(epochs) > 1 else {})
                yield json.dumps(line, ensure_ascii=False) + "\n"


def conversational(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `data/pairs` in TRL's conversational format with explicit prompt."""
    sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    others = {name: value for name, value in row.items() if name not in NOT_COPIED}
    return {"prompt": messages(to_turns(row["prompt"])), **sides, **others}


def main(argv: Sequence[str]) -> None:
    """Write the file."""
    parser = command_parser("export", __doc__)
    kinds = parser.add_subparsers(dest="kind", title="what", metavar="<what>", required=True)
    pairs = kinds.add_parser("pairs", help="preference pairs, for TRL", allow_abbrev=False)
    pairs.add_argument("rounds", nargs="+", metavar="round", help="a key of rounds")
    pairs.add_argument("-o", "--out", type=Path, required=True, help="the file to write, .jsonl")
    arguments = parser.parse_args(argv)
    if arguments.out.suffix != ".jsonl":
        raise UserError(f"{arguments.out} has another ending than .jsonl, by which rule file knows the format")
    lines = pair_lines(load(), arguments.rounds)
    with whole_file(arguments.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(lines)
