"""Sections on classifiers and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from attune.config.sections.fields import (
    REPLY_FILES,
    Address,
    Name,
    NotNegative,
    Positive,
    Rate,
    Reader,
    named_file,
    section,
)
from attune.config.sections.weights import Weights


@section
class Encoder(Weights):
    """The bidirectional encoder of the classifiers and BERTScore; `made` gives a small random one, for tests."""


@section
class Epitome:
    """The EPITOME classifiers (Sharma et al. 2020): training data and hyperparameters."""

    data: Literal["data/sample/epitome", "data/raw/epitome"]
    levels: Name
    checkpoints: Name
    seed: NotNegative
    epochs: Positive
    learning_rate: Rate
    head_learning_rate: Rate
    batch_size: Positive
    max_length: Annotated[int, Field(ge=8)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    frozen_layers: NotNegative
    lambda_level: Annotated[float, Field(ge=0)]
    lambda_rationale: Annotated[float, Field(ge=0)]

    @property
    def published(self) -> Path | None:
        """The folder of published checkpoints; None: the classifiers are trained."""
        return None if self.checkpoints == self.data else Path(self.checkpoints)

    @property
    def level_corpus(self) -> Path | None:
        """The folder of replies with published levels; None: there is no second training corpus."""
        return None if self.levels == self.data else Path(self.levels)

    @property
    def sentences(self) -> str:
        """The folder of replies with published levels, which DVC watches as it does the sentences of others."""
        return self.levels

    @property
    def table(self) -> str:
        """The folder of checkpoints, which DVC watches as it does the tables of other classifiers."""
        return self.checkpoints


@section
class TurnTraining:
    """Hyperparameters of a classifier of assistant turns."""

    epochs: Positive
    learning_rate: Rate
    head_learning_rate: Rate
    batch_size: Positive
    max_length: Annotated[int, Field(ge=16)]
    dropout: Annotated[float, Field(ge=0, lt=1)]


@section
class Dbt(TurnTraining):
    """The classifier of the four stages of DBT: labelled turns and hyperparameters."""

    table: Name
    data: Name
    reader: Reader
    context_turns: Positive
    seed: NotNegative


@section
class Behaviour(TurnTraining):
    """The classifiers of a counsellor's behaviours and of adherence to motivational interviewing (`miti`)."""

    table: Name
    sentences: Name
    data: Name
    reader: Reader
    context_turns: Positive
    seed: NotNegative
    miti: TurnTraining


@section
class Classifier:
    """Training files of a classifier, as DVC dependencies; a repeated path means "none"."""

    data: Name
    sentences: Name
    table: Name


@section
class Bertscore:
    """BERTScore (Zhang et al. 2020) with the encoder `hub_id`, or with that of the section `encoder` if it is null."""

    hub_id: str | None
    revision: str | None
    layer: NotNegative
    batch_size: Positive


@section
class Evaluate:
    """The reference variant of comparisons, and the number of bootstrap resamples of the intervals."""

    reference: Name
    resamples: Annotated[int, Field(ge=100)]


@section
class Mmlu:
    """Five-shot MMLU (Hendrycks et al. 2020), by the task of lm-evaluation-harness on local rows."""

    corpus: Name
    form: Literal["letters", "cloze"]
    shots: NotNegative
    # A standard error needs two questions.
    limit: Annotated[int, Field(ge=2)] | None
    batch_size: Positive


@section
class Safety:
    """Probes of each kind, what the gate does when a variant falls below the reference, and the judge's prompt."""

    limit: Positive | None
    gate: Literal["off", "warn", "fail"]
    judge_prompt: Name


Health = Literal[
    "anatomy", "clinical_knowledge", "college_medicine", "human_aging", "medical_genetics", "nutrition",
    "professional_medicine", "virology",
]  # fmt: skip
"""MMLU's subjects of the category health, by its authors' table (categories.py of github.com/hendrycks/test)."""
EMBEDDED_HEALTH = ("nutrition",)
"""Those of the embedded sample."""


@section
class Truth:
    """TruthfulQA (Lin et al. 2022) by lm-evaluation-harness's truthfulqa_mc1, and subjects of MMLU, on local rows."""

    corpus: Name
    limit: Positive | None
    medical: list[Health]
    batch_size: Positive


@section
class Converse:
    """How many conversations are played, and who says what the scripts say: they, or a model behind an endpoint."""

    limit: Positive | None
    seeker: Literal["scripts", "endpoint"]
    base_url: Address
    model: Name
    prompt: Name
    max_tokens: Positive


@section
class Judge:
    """An automatic judge of pairs of replies: its endpoint, its prompt, and people's ratings to measure it by."""

    base_url: Address
    model: Name
    prompt: Name
    max_tokens: Positive
    limit: Positive | None
    rated: Name
    rating: Name
    rated_limit: Positive | None
    least_kappa: Annotated[float, Field(ge=-1, le=1)]


@section
class Variant:
    """A model to evaluate: the folder of the base model or of an adapter, and a file with an instruction.

    Without an instruction it is `data/dialogues`, on which the replies depend anyway: a DVC dependency cannot be null.
    In place of a model a file of replies that were made elsewhere may be named: both are where the replies come from.
    `max_new_tokens` is the variant's own; None: that of `Generate`.
    """

    model: Name
    instruction: Name
    max_new_tokens: Positive | None = None

    @property
    def instruction_file(self) -> Path | None:
        """The file of the instruction, or None."""
        return named_file(self.instruction)

    @property
    def replies_file(self) -> Path | None:
        """The file of replies that were made elsewhere, or None where the variant has a model."""
        path = Path(self.model)
        return path if path.suffix.lower() in REPLY_FILES else None


PROBES = ("safety", "truth", "converse")
"""What is measured of the variants in `probed`, each by the stage of its name."""


def scoring_stage(scorer: str, variant: str) -> str:
    """The stage that writes the metrics and the scores of a scorer, or of a probe."""
    if scorer in ("mmlu", *PROBES):
        return f"{scorer}@{variant}"
    return f"evaluate@{variant}" if scorer == "text" else f"scores@{variant}-{scorer}"
