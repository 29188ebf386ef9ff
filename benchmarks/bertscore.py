"""BERTScore against another version of its file, on the replies of EmpatheticDialogues' test split.

    git show ee39ef2:attune/scoring/text/bertscore.py > other.py
    python -m benchmarks.bertscore other.py

compares the file of that commit, which had an own matching, with this one, by the package bert-score: the time of the
other over this one's, round by round, and the largest difference of a score. 320 pairs of a reply and the next one,
MiniLM, one thread.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from attune.config.params import load
from attune.scoring.text.bertscore import bertscore
from benchmarks.measure import alternate, compared, dialogues

PAIRS = 320


def main(path: Path) -> None:
    """Measure and print."""
    import torch

    from attune.models.encoder import load_encoder

    params = load()
    torch.set_num_threads(1)
    found, origin = dialogues()
    texts = [turn.text for one in found if one.split == "test" for turn in one.turns if turn.role == "assistant"]
    texts = texts[: PAIRS + 1]
    settings = (texts[1:], texts[:-1], *load_encoder(params.encoder, params.hardware), params.bertscore.layer, 64)
    ours, others = (partial(one, *settings) for one in (bertscore, function_of(path)))
    rounds = compared(alternate(ours, others), len(texts) - 1, "pairs")
    scores, others_scores = ours(), others()
    apart = max(abs(a - b) for name in scores for a, b in zip(scores[name], others_scores[name], strict=True))
    print(
        f"{len(texts) - 1} pairs of {origin}: {rounds['ours_per_second']} pairs/s, {path} {rounds['peer_per_second']}; "
        f"its time over ours {rounds['ratio']} ({rounds['low']} to {rounds['high']}); scores differ by at most "
        f"{apart:.1g} of 100"
    )


def function_of(path: Path) -> Any:
    """`bertscore` of a Python file."""
    spec = spec_from_file_location("other_bertscore", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.bertscore


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="another version of attune/scoring/text/bertscore.py")
    main(parser.parse_args().file)
