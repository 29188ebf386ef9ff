"""Stage `base`: the base model, which every variant starts from.

A hub model is recorded, not copied: `models/base/base.json` names the id and the resolved commit, and every later stage
loads that commit. Without `model.hub_id` a small model is made here: tokenizer, weights, pretraining. With
`model.as_decoder` a BERT encoder becomes a decoder and is pretrained as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attune.config.params import load
from attune.config.schema import Params
from attune.corpora.readers import empathetic_dialogues, pretraining
from attune.data.dialogue import Turn
from attune.models.base_record import RECORD, base_record, hub_record
from attune.runtime.checkpoints import checkpoints
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import reported
from attune.runtime.io import canonicalize_model_files, whole_folder, write_json

RAW = Path("data/raw")
SAMPLE = Path("data/sample/empatheticdialogues")
TARGET = Path("models/base")
CURVES = Path("reports/curves/base")


def pretraining_dialogues(corpus: str) -> Iterator[tuple[Turn, ...]]:
    """The pretraining data: the train split of the embedded sample, or the `dialogues.jsonl` of a corpus folder.

    Raises:
        DataError: as the readers.
    """
    if corpus == "sample":
        dialogues, _ = empathetic_dialogues.read(SAMPLE)
        yield from (d.turns for d in dialogues if d.split == "train")
        return
    yield from (turns for _, turns in pretraining.read(RAW / corpus))


def main(params: Params) -> None:
    """Write `models/base`."""
    from attune.models.encoder import encoder_signature
    from attune.training.pretraining.pretrain import pretrain

    if not params.model.is_made:
        CURVES.mkdir(parents=True, exist_ok=True)
        write_json(TARGET / RECORD, hub_record(params.model))
        return
    dialogues = list(pretraining_dialogues(params.tiny.corpus))
    settings = (params.model, params.tiny, params.hardware, params.seed)
    with checkpoints("base", params) as folder:
        model, tokenizer = pretrain(dialogues, *settings, folder, CURVES)
        made_of = encoder_signature(params.model) if params.model.as_decoder else None
        record = base_record(params.model, hub_id=None, revision=None, commit=None, made_of=made_of)
        with whole_folder(TARGET, sum(weight.nbytes for weight in model.state_dict().values())) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            canonicalize_model_files(partial)
            write_json(partial / RECORD, record)


if __name__ == "__main__":
    with reported():
        stage_arguments(__doc__)
        main(load())
