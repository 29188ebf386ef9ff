"""Where candidates come from without an endpoint: people who answered the same kind of problem, or the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attune.config.schema import Hardware, Pairs
from attune.data.dialogue import Example, normalise
from attune.data.keyed import uniform
from attune.data.pair import Pair
from attune.pairs.dbt import Candidates, Source

Pool = dict[tuple[str, str | None], list[Example]]


def other_acts(pool: Sequence[Example]) -> Pool:
    """For each (label, act) of `pool` the examples of that label with another act, in order of their ids."""
    ordered = sorted((one for one in pool if one.act), key=lambda e: e.id)
    groups = {(one.label, one.act) for one in pool}
    return {(label, act): [e for e in ordered if e.label == label and e.act != act] for label, act in groups}


def corpus_source(pool: Sequence[Example], samples: int, seed: int, epoch: int) -> Source:
    """The human reply itself and `samples` - 1 draws from human replies to the same label with another act.

    Args:
        pool: the examples of the train split.
        samples: candidates an example; fewer where draws repeat or the label has no other act.
        seed: of the run.
        epoch: from 1.
    """
    groups = other_acts(pool)

    def candidates(examples: Sequence[Example]) -> Candidates:
        return Candidates(
            [[one.target, *(e.target for e in _draws(one, groups, samples - 1, seed, epoch))] for one in examples]
        )

    return candidates


def other_act_pairs(examples: Sequence[Example], pool: Sequence[Example], *, seed: int, epoch: int) -> list[Pair]:
    """The human reply against one human reply to the same label with another act: held-out pairs, which no judge sees.

    An example without such a reply, or for which the one that is drawn says the same, gives none.
    """
    groups = other_acts(pool)
    drawn = ((one, *_draws(one, groups, 1, seed, epoch)) for one in examples)
    return [
        Pair(one.id, epoch, one.context, one.target, other[0].target, one.label, other[0].label, other[0].id)
        for one, *other in drawn
        if other and normalise(other[0].target) != normalise(one.target)
    ]


def policy_source(
    base: Path, model: Path, settings: Pairs, max_length: int, hardware: Hardware, seed: int, epoch: int
) -> Source:
    """Samples of the model that a round starts from (on-policy preferences).

    Args:
        base: folder of the base model.
        model: folder of an adapter on it, or `base` itself.
        settings: number, length and distribution of the samples.
        max_length: of prompt and reply together, in tokens, as in training.
        hardware: device and precision.
        seed: of the run.
        epoch: from 1.
    """

    def candidates(examples: Sequence[Example]) -> Candidates:
        from attune.generation.generate import generate_replies
        from attune.generation.sampling import Draws
        from attune.models.chat_template import encode_prompt
        from attune.models.loading import load_tokenizer, load_variant, require_positions

        policy = load_variant(base, model, hardware)
        require_positions(policy, "dpo.max_length", max_length)
        tokenizer, n = load_tokenizer(base), settings.samples
        room = max_length - settings.max_new_tokens
        prompts = [encode_prompt(tokenizer, one.context, room) for one in examples]
        seeds = [uniform(2**63, seed, epoch, one.id, "policy", i) for one in examples for i in range(n)]
        draws = Draws(settings.temperature, settings.top_p, seeds)
        repeated = [prompt for prompt in prompts for _ in range(n)]
        texts = generate_replies(policy, tokenizer, repeated, settings.max_new_tokens, hardware, draws)
        return Candidates([texts[i : i + n] for i in range(0, len(texts), n)])

    return candidates


def _draws(one: Example, groups: Pool, n: int, seed: int, epoch: int) -> list[Example]:
    others = groups.get((one.label, one.act), [])
    return [others[uniform(len(others), seed, epoch, one.id, "corpus", i)] for i in range(n)] if others else []
