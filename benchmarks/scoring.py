"""What a recipe's evaluation by EPITOME costs, against one pair at a time, as the published scorers work.

    python -m benchmarks.scoring        # about 6 minutes on two cores
    python -m benchmarks.scoring all    # about 8 minutes

The test contexts of the dialogues in force, the bi-encoders of `models/epitome` (`dvc repro epitome prepare`), fp32 on
both sides, as the stages compute levels. The headline is a recipe's evaluation: the levels of the replies of V variants
to the same contexts and of the human references that diff-EPITOME compares them with, in contexts a second:

- The peer scores a variant at a time and one example after the other: of each the reply and the reference, by three
  classifiers with two encoders each, without padding. So it scores 2 V pairs a context: the references anew for every
  variant.
- Ours is what the stages do: the references once (stage `references`), then each variant's replies (stage `evaluate`),
  so 1 + V pairs a context, batched, with each distinct text encoded once within a stage. The posts are encoded 1 + V
  times; nothing is kept between stages.

Both sides give every level that the metrics need. Loading the classifiers is not counted, on neither side. The case
`one-set` is the references alone, scored once on both sides: what batching gives without the sharing.

The variants are those in `data/replies`, the contexts those that all of them answer; where there are none, human
targets of other dialogues, shifted by 1, 2 and 3, stand in for three variants, and the result says so. Both sides are
warmed up and alternate; the ratio is taken round by round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attune.classifiers.epitome.files import load as load_classifiers
from attune.classifiers.epitome.levels import level_logits, seeker_post, tokens_of
from attune.classifiers.epitome.model import Classifiers, encoder_of, heads
from attune.compute.process import set_up_process
from attune.config.params import load
from attune.config.schema import Hardware, Params
from attune.data.dialogue import Example
from attune.data.examples import read_examples
from benchmarks import measure

TEST = Path("data/dialogues/test.parquet")
REPLIES = Path("data/replies")
CLASSIFIERS = Path("models/epitome")
STAND_INS = (1, 2, 3)
Levels = list[list[int]]


@dataclass(frozen=True)
class Case:
    """The replies of all variants with the references, or the references alone."""

    variants: bool
    contexts: int = 160
    sides: tuple[str, ...] = ("ours", "one_by_one")

    def tiny(self) -> Case:
        return replace(self, contexts=4)


CASES = {"headline": Case(True), "one-set": Case(False)}


def set_up() -> tuple[Params, Classifiers]:
    """The params in force and the classifiers."""
    params = load()
    set_up_process(params.hardware)
    classifiers = load_classifiers(CLASSIFIERS, params.hardware)
    return params, classifiers


def measured(setting: tuple[Params, Classifiers], case: Case) -> dict[str, Any]:
    """The figures of a case."""
    params, classifiers = setting
    examples, variants, origin = answered(read_examples(TEST, params.context), case.contexts)
    posts, references = [seeker_post(one.context) for one in examples], [one.target for one in examples]
    weights = {weight.dtype for model in classifiers.models.values() for weight in model.parameters()}
    return {
        **compare(classifiers, posts, references, params.hardware, variants if case.variants else {}),
        "data": origin if case.variants else "references",
        "distinct_posts": len(set(posts)),
        "distinct_references": len(set(references)),
        "dtype": ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in weights)),
    }


def answered(examples: list[Example], count: int) -> tuple[list[Example], dict[str, list[str]], str]:
    """The first `count` examples that all variants answer, the variants' replies to them, and where these are from."""
    import pyarrow.parquet as pq

    tables = {file.stem: pq.read_table(file, columns=["id", "reply"]) for file in sorted(REPLIES.glob("*.parquet"))}
    if not tables:
        examples = examples[:count]
        targets = [one.target for one in examples]
        shifted = {f"shifted by {n}": targets[n:] + targets[:n] for n in STAND_INS}
        return examples, shifted, "human targets of other dialogues, in place of variants"
    replies = {name: dict(zip(*table.to_pydict().values(), strict=True)) for name, table in tables.items()}
    common = [one for one in examples if all(one.id in reply for reply in replies.values())][:count]
    found = {name: [reply[one.id] for one in common] for name, reply in replies.items()}
    return common, found, f"replies of the variants {', '.join(found)}"


def compare(
    classifiers: Classifiers,
    posts: list[str],
    references: list[str],
    hardware: Hardware,
    variants: dict[str, list[str]],
) -> dict[str, Any]:
    """Both sides on the references and the replies of `variants`, or on the references alone."""
    once = [references, *variants.values()]
    anew = [texts for replies in variants.values() for texts in (references, replies)] or once
    levels: dict[str, list[Levels]] = {}

    def ours() -> None:
        levels["ours"] = [batched(classifiers, posts, some) for some in once]

    def one_by_one() -> None:
        levels["peer"] = [peer(classifiers, posts, some, hardware) for some in anew]

    rounds = measure.alternate(ours, one_by_one)
    return {
        "unit": "contexts",
        "over": {"one_by_one": measure.compared(rounds, len(posts))},
        "amount": len(posts),
        "pairs_scored": {"ours": len(posts) * len(once), "peer": len(posts) * len(anew)},
        "levels_that_differ": sum(map(different, levels["ours"], [levels["peer"][anew.index(some)] for some in once])),
    }


def different(some: Levels, others: Levels) -> int:
    """How many levels are not equal, over mechanisms and pairs."""
    return sum(one != other for both in zip(some, others, strict=True) for one, other in zip(*both, strict=True))


def batched(classifiers: Classifiers, posts: list[str], replies: list[str]) -> Levels:
    """Levels of each mechanism as the stages compute them."""
    return [values.argmax(-1).tolist() for values in level_logits(classifiers, posts, replies).values()]


def peer(classifiers: Classifiers, posts: list[str], replies: list[str], hardware: Hardware) -> Levels:
    """Levels of each mechanism by a plain loop over the pairs."""
    import torch

    levels: Levels = [[] for _ in classifiers.models]
    with torch.inference_mode():
        for post, reply in zip(posts, replies, strict=True):
            for found, model in zip(levels, classifiers.models.values(), strict=True):
                states = []
                for side, text in (("seeker_encoder", post), ("responder_encoder", reply)):
                    ids = torch.tensor(tokens_of(classifiers, [text]), device=hardware.device)
                    output = encoder_of(model, side)(input_ids=ids, attention_mask=torch.ones_like(ids))
                    states.append(output.last_hidden_state)
                mask = torch.ones(states[0].shape[:2], dtype=torch.bool, device=hardware.device)
                found.append(int(heads(model, states[1], states[0], mask)[0].argmax()))
    return levels


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    measure.run("scoring", __doc__, CASES, measured, argv=argv, start=set_up)


if __name__ == "__main__":
    main()
