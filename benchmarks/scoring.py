"""Pairs a second of EPITOME scoring against one pair at a time, as the published scorers work.

    python -m benchmarks.scoring

The test contexts of the dialogues in force with their human replies, the classifiers of `models/epitome` (`dvc repro
epitome prepare`), the precision of the params. The peer calls the three classifiers for one pair after the other, each
with its two encoders, without padding. Both sides are warmed up and alternate; the ratio is taken round by round.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import alternate, compared, write_result
from stages.dialogues import read_examples
from stages.modeling.loading import set_up_process
from stages.params import Hardware, load
from stages.scoring.classifier import autocast
from stages.scoring.epitome import level_logits, seeker_post, tokens_of
from stages.scoring.epitome_files import load as load_classifiers
from stages.scoring.epitome_model import Classifiers, encoder_of, heads

TEST = Path("data/dialogues/test.parquet")
CLASSIFIERS = Path("models/epitome")
PAIRS = 512


def main() -> None:
    """Measure, print and write the result."""
    params = load()
    set_up_process(params.hardware)
    classifiers = load_classifiers(CLASSIFIERS, params.hardware)
    examples = read_examples(TEST, params.corpus)[:PAIRS]
    posts, replies = [seeker_post(one.context) for one in examples], [one.target for one in examples]
    found: dict[str, list[list[int]]] = {}

    def ours() -> None:
        logits = level_logits(classifiers, posts, replies, params.hardware)
        found["ours"] = [values.argmax(-1).tolist() for values in logits.values()]

    def one_by_one() -> None:
        found["peer"] = peer(classifiers, posts, replies, params.hardware)

    rounds = alternate(ours, one_by_one)
    pairs = [pair for both in zip(found["ours"], found["peer"], strict=True) for pair in zip(*both, strict=True)]
    result = {
        **compared(rounds, len(examples), "pairs"),
        "peer": "one pair at a time, both encoders of each of the three classifiers",
        "pairs": len(examples),
        "distinct_posts": len(set(posts)),
        "distinct_replies": len(set(replies)),
        "levels_that_differ": sum(one != other for one, other in pairs),
        "dtype": params.hardware.dtype,
    }
    write_result("scoring", result)


def peer(classifiers: Classifiers, posts: list[str], replies: list[str], hardware: Hardware) -> list[list[int]]:
    """Levels of each mechanism by a plain loop over the pairs."""
    import torch

    levels: list[list[int]] = [[] for _ in classifiers.models]
    with torch.inference_mode(), autocast(hardware):
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


if __name__ == "__main__":
    main()
