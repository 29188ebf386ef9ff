"""The schema of `params.yaml`: all sections, typed, with ranges; each key is commented in `conf/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from attune.config.sections.data_and_training import (
    Adapter,
    Columns,
    Context,
    Corpus,
    Dpo,
    Endpoint,
    Generate,
    Llm,
    Lora,
    Messages,
    Mixed,
    Model,
    PairFile,
    Pairs,
    Round,
    Sft,
    Shares,
    Tiny,
)
from attune.config.sections.fields import (
    BASE,
    COLUMN_READERS,
    DBT,
    DIALOGUES,
    EPITOME,
    FILE_READERS,
    LABEL_RULES,
    LOGGING_STEPS,
    NO_LOCAL_DIR,
    PAIR_FILES,
    REPLY_FILES,
    ROUNDS,
    Name,
    NotNegative,
    rules,
)
from attune.config.sections.machine import Compute, Decoding, Hardware, Ranks, Runtime, Training
from attune.config.sections.scoring import (
    EMBEDDED_HEALTH,
    PROBES,
    Behaviour,
    Bertscore,
    Classifier,
    Converse,
    Dbt,
    Encoder,
    Epitome,
    Evaluate,
    Judge,
    Mmlu,
    Safety,
    Truth,
    TurnTraining,
    Variant,
    scoring_stage,
)
from attune.config.sections.weights import NO_FOLDER, NO_REVISION, Weights
from attune.runtime.errors import ParamsError

__all__ = [
    "BASE",
    "COLUMN_READERS",
    "DBT",
    "DIALOGUES",
    "EMBEDDED_HEALTH",
    "EPITOME",
    "FILE_READERS",
    "LABEL_RULES",
    "LOGGING_STEPS",
    "NO_FOLDER",
    "NO_LOCAL_DIR",
    "NO_REVISION",
    "PAIR_FILES",
    "PROBES",
    "REPLY_FILES",
    "ROUNDS",
    "Adapter",
    "Behaviour",
    "Bertscore",
    "Classifier",
    "Columns",
    "Compute",
    "Context",
    "Converse",
    "Corpus",
    "Dbt",
    "Decoding",
    "Dpo",
    "Encoder",
    "Endpoint",
    "Epitome",
    "Evaluate",
    "Generate",
    "Hardware",
    "Judge",
    "Llm",
    "Lora",
    "Messages",
    "Mixed",
    "Mmlu",
    "Model",
    "PairFile",
    "Pairs",
    "Params",
    "Ranks",
    "Round",
    "Runtime",
    "Safety",
    "Sft",
    "Shares",
    "Tiny",
    "Training",
    "Truth",
    "TurnTraining",
    "Variant",
    "Weights",
    "bertscore_encoder",
    "chain",
    "rules",
    "scoring_stage",
]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Params:
    """The whole of `params.yaml`."""

    seed: NotNegative
    corpus: Corpus
    context: Context
    model: Model
    tiny: Tiny
    lora: Lora
    sft: Sft
    adapters: Annotated[dict[Name, Adapter], Field(min_length=1)]
    pairs: Pairs
    llm: Llm
    endpoint: Endpoint
    dpo: Dpo
    rounds: Annotated[dict[Name, Round], Field(min_length=1)]
    generate: Generate
    encoder: Encoder
    classifiers: dict[Literal["epitome", "dbt", "behaviour"], Classifier]
    scorers: list[Literal["text", "epitome", "dbt", "behaviour", "mmlu"]]
    epitome: Epitome
    dbt: Dbt
    behaviour: Behaviour
    bertscore: Bertscore
    evaluate: Evaluate
    mmlu: Mmlu
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    probed: dict[Name, Variant]
    safety: Safety
    truth: Truth
    converse: Converse
    judged: dict[Name, Variant]
    judge: Judge
    compute: Compute
    ranks: Ranks
    training: Training
    decoding: Decoding
    runtime: Runtime

    @property
    def hardware(self) -> Hardware:
        """The five sections on the machine as one object."""
        sections = (self.compute, self.ranks, self.training, self.decoding, self.runtime)
        return Hardware(**{key: value for section in sections for key, value in vars(section).items()})

    @property
    def last_model(self) -> str:
        """The last variant that has a model: the one that a run is about."""
        return [name for name, variant in self.variants.items() if variant.replies_file is None][-1]

    def with_hardware(self, hardware: Hardware) -> Params:
        """These params with the five sections on the machine taken from `hardware`."""
        kinds = {"compute": Compute, "ranks": Ranks, "training": Training, "decoding": Decoding, "runtime": Runtime}
        values = vars(hardware)
        parts: dict[str, Any] = {
            name: kind(**{key: values[key] for key in kind.__annotations__}) for name, kind in kinds.items()
        }
        return replace(self, **parts)


def chain(rounds: Mapping[str, Round], key: str) -> list[str]:
    """The rounds that end in `key`, from the one that starts from no other round's model, in the order of training.

    Raises:
        ParamsError: the rounds start from each other in a circle.
    """
    before = {
        one: path.name
        for one, path in ((name, Path(r.init)) for name, r in rounds.items())
        if path.parent == ROUNDS and path.name in rounds
    }
    found = [key]
    while found[0] in before:
        earlier = before[found[0]]
        if earlier in found:
            raise ParamsError(f"rounds.{earlier}.init leads back to itself: {' <- '.join([earlier, *found])}")
        found.insert(0, earlier)
    return found


def bertscore_encoder(params: Params) -> Encoder:
    """The encoder of BERTScore: its own, where `bertscore.hub_id` names one, else that of the other scorers."""
    own = params.bertscore
    if own.hub_id is None:
        return params.encoder
    named = {"name": own.hub_id, "source": "hub", "hub_id": own.hub_id, "revision": own.revision, "sha256": None}
    return Encoder(**{**vars(params.encoder), **named})
