"""Write what the pipeline made in the formats of other programs.

    python -m attune export sft-dpo FOLDER
    python -m attune export sft-dpo FOLDER --dtype bf16

writes a variant as one model in Hugging Face layout: the adapter merged into the weights of the base model
(safetensors), tokenizer, chat template with the variant's instruction, generation config, and the card as README.md.
transformers, vLLM and llama.cpp's converter read it without the project; the card has the code, and the two lines that
make a GGUF file. In fp32 its greedy replies are those of the variant in fp32; --dtype bf16 halves the files and may
change replies.

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
from attune.runtime.io import sha256_of, whole_file, whole_folder, write_text
from attune.tools.merged import DTYPES, require_mergeable, write_merged
from attune.tools.variant_card import merged_card, read_card

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


def export_variant(variant: str, params: Params, folder: Path, dtype: str) -> None:
    """Write a variant as one model, with its card.

    Raises:
        UserError: as `write_merged` and `read_card`, or `folder` is there and not empty.
    """
    settings = require_mergeable(variant, params)
    card = read_card(variant, Path(settings.model))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and is no empty folder: name another")
    with whole_folder(folder) as partial:
        write_merged(variant, params, partial, dtype)
        files = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
        write_text(partial / "README.md", merged_card(card, files, dtype, params))


def main(argv: Sequence[str]) -> None:
    """Write the file or the folder."""
    parser = command_parser("export", __doc__)
    parser.add_argument("what", help="a key of variants, or `pairs`")
    parser.add_argument("names", nargs="+", metavar="name", help="the folder to write; with `pairs` keys of rounds")
    parser.add_argument("--dtype", choices=DTYPES, help="of a variant's weights; default: fp32")
    parser.add_argument("-o", "--out", type=Path, help="with `pairs`: the file to write, .jsonl")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.what != "pairs":
        if arguments.out or len(arguments.names) > 1:
            parser.error("a variant is exported to one folder, without -o")
        export_variant(arguments.what, load(), Path(arguments.names[0]), arguments.dtype or DTYPES[0])
        return
    if not arguments.out or arguments.dtype:
        parser.error("pairs are exported with -o to a file, without --dtype")
    if arguments.out.suffix != ".jsonl":
        raise UserError(f"{arguments.out} has another ending than .jsonl, by which rule file knows the format")
    lines = pair_lines(load(), arguments.names)
    with whole_file(arguments.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(lines)
