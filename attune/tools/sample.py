"""Regenerate an embedded sample from its phrases in `data/sample/`.

    python -m attune sample dialogues

The same phrases and seed give the same bytes, so that the written files are tracked and tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from attune.runtime.cli import command_parser
from attune.tools.sample_data import annomi, dialogues, epitome, esconv

SAMPLES = Path("data/sample")
# Each sample: the function that writes it, its phrases, and its folder below `data/sample`.
MAKERS: dict[str, tuple[Callable[[Path, Path], None], str, str]] = {
    "annomi": (annomi.write_sample, "annomi_phrases.yaml", "annomi_sample"),
    "dialogues": (dialogues.write_sample, "phrases.yaml", ""),
    "epitome": (epitome.write_sample, "epitome_phrases.yaml", "epitome"),
    "esconv": (esconv.write_sample, "esconv_phrases.yaml", "esconv_sample"),
}


def main(argv: Sequence[str]) -> None:
    """Write the files of a sample."""
    parser = command_parser("sample", __doc__)
    parser.add_argument("sample", choices=MAKERS)
    parser.add_argument(
        "--phrases", type=Path, help="the written material, replies.yaml beside it; default: the file in data/sample"
    )
    parser.add_argument("--out", type=Path, help="folder to write to; default: the sample's folder in data/sample")
    arguments = parser.parse_args(argv)
    write, phrases, folder = MAKERS[arguments.sample]
    write(arguments.phrases or SAMPLES / phrases, arguments.out or SAMPLES / folder)
