"""Sources of candidates without an endpoint: human replies to the same label, or samples of the policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attune.config.schema import Hardware, Pairs
from attune.data.dialogue import Example, normalise
from attune.data.keyed import uniform
from attune.data.pair import Pair
from attune.pairs.ranked import Candidates, Source

Pool = dict[tuple[str, str | None], list[Example]]


def other_acts(pool: Sequence[Example]) -> Pool:
    """For each (label, act) in `pool`: the examples with this label and another act, in order of their ids."""
    ordered = sorted((e for e in pool if e.act), key=lambda e: e.id)
    groups = {(e.label, e.act) for e in pool}
    return {(label, act): [e for e in ordered if e.label == label and e.act != act] for label, act in groups}


def corpus_source(pool: Sequence[Example], samples: int, seed: int, epoch: int) -> Source:
    """The target itself, and `samples` - 1 draws from the targets with the same label and another act.

    Args:
        pool: the examples of the train split.
        samples: candidates an example; fewer if draws repeat or the label has no other act.
        seed: of the run.
        epoch: from 1.
    """
    groups = other_acts(pool)

    def candidates(examples: Sequence[Example]) -> Candidates:
        return Candidates(
            [[e.target, *(other.target for other in _draws(e, groups, samples - 1, seed, epoch))] for e in examples]
        )

    return candidates


def other_act_pairs(examples: Sequence[Example], pool: Sequence[Example], *, seed: int, epoch: int) -> list[Pair]:
    """Held-out pairs, without a judge: the target against one draw from the targets with its label and another act.

    An example has no pair if there is no such target, or the draw has the text of its own.
    """
    groups = other_acts(pool)
    drawn = ((e, *_draws(e, groups, 1, seed, epoch)) for e in examples)
    return [
        Pair(e.id, epoch, e.context, e.target, other[0].target, e.label, other[0].label, other[0].id)
        for e, *other in drawn
        if other and normalise(other[0].target) != normalise(e.target)
    ]


def policy_source(
    base: Path, model: Path, settings: Pairs, max_length: int, hardware: Hardware, seed: int, epoch: int, samples: int
) -> Source:
    """Samples of the model that a round starts from (on-policy).

    Args:
        base: folder of the base model.
        model: folder of an adapter on it, or `base` itself.
        settings: length and distribution of the samples.
        max_length: of prompt and reply together, in tokens, as in training.
        hardware: device and precision.
        seed: of the run.
        epoch: from 1.
        samples: an example.
    """

    def candidates(examples: Sequence[Example]) -> Candidates:
        from attune.generation.generate import generate_replies
        from attune.generation.sampling import Draws
        from attune.models.chat_template import encode_prompt
        from attune.models.loading import load_tokenizer, load_variant, require_positions

        policy = load_variant(base, model, hardware)
        require_positions(policy, "dpo.max_length", max_length)
        tokenizer, n = load_tokenizer(base), samples
        room = max_length - settings.max_new_tokens
        prompts = [encode_prompt(tokenizer, e.context, room) for e in examples]
        seeds = [uniform(2**63, seed, epoch, e.id, "policy", i) for e in examples for i in range(n)]
        draws = Draws(settings.temperature, settings.top_p, seeds)
        repeated = [prompt for prompt in prompts for _ in range(n)]
        texts = generate_replies(policy, tokenizer, repeated, settings.max_new_tokens, hardware, draws)
        return Candidates([texts[i : i + n] for i in range(0, len(texts), n)])

    return candidates


def _draws(example: Example, groups: Pool, n: int, seed: int, epoch: int) -> list[Example]:
    others = groups.get((example.label, example.act), [])
    return [others[uniform(len(others), seed, epoch, example.id, "corpus", i)] for i in range(n)] if others else []
