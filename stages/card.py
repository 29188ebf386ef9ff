"""Stage `card@<variant>`: the model card of a variant, `reports/cards/<variant>.md`.

    python -m stages.card sft-dpo

A card (Mitchell et al. 2019, arXiv:1810.03993) says what a model was made from, under which licences, how it was
trained, how good it is, and what it is not for. It is in Git, where reviewers read it, and not in the folder of the
adapter, which is the out of another stage; `attune push` adds it to the weights as README.md. It holds no date and no
commit, so that equal runs give equal bytes; the hashes in it tell `attune push` whether it describes the files there.
"""

from __future__ import annotations

from attune.config.params import load
from attune.config.schema import Params
from attune.report.card_facts import CARDS, gather
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import reported
from attune.runtime.io import write_text


def main(variant: str, params: Params) -> None:
    """Write `reports/cards/<variant>.md`."""
    from attune.report.card_page import page

    write_text(CARDS / f"{variant}.md", page(gather(variant, params), params))


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of variants")
        main(arguments.variant, load())
