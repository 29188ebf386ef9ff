"""Stage `card@<variant>`: the model card of a variant, `reports/cards/<variant>.md`.

    python -m stages.card sft-dpo

A card (Mitchell et al. 2019, arXiv:1810.03993) lists a model's sources and licences, its training, its metrics, and
uses out of scope. It is in Git, where reviewers read it, and not in the folder of the adapter, which is the out of
another stage; `attune push` uploads it with the weights as README.md. It has no date and no commit, so that equal runs
give equal bytes; `attune push` compares the hashes in it with the files to publish. The card of replies that were made
elsewhere names their file and has the metrics alone.
"""

from __future__ import annotations

from attune.config.params import load, named
from attune.config.schema import Params
from attune.report.card_facts import CARDS, gather
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import reported
from attune.runtime.io import write_text


def main(variant: str, params: Params) -> None:
    """Write `reports/cards/<variant>.md`."""
    from attune.report.card_page import page, replies_page

    elsewhere = named(params.variants, variant, "variants").replies_file
    text = replies_page(variant, params) if elsewhere else page(gather(variant, params), params)
    write_text(CARDS / f"{variant}.md", text)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of variants")
        main(arguments.variant, load())
