"""Sections on data, models, SFT, preference pairs, DPO and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from attune.config.sections.fields import (
    DIALOGUES,
    NO_LOCAL_DIR,
    Address,
    AtLeastZero,
    Modules,
    Name,
    NotNegative,
    Passes,
    Positive,
    Rate,
    Reader,
    Rule,
    Scheduler,
    Share,
    Warmup,
    named_file,
    section,
)
from attune.config.sections.preference_losses import F_ALPHA, READERS, REFERENCE_FREE, Loss, Smoothing, names
from attune.config.sections.weights import Weights


@section
class Columns:
    """The names of a csv file's columns, for readers whose files differ in them."""

    dialogue: Name
    turn: Name
    role: Name
    text: Name
    act: Name


@section
class Shares:
    """Percent of the dialogues without a split."""

    train: Positive
    valid: Positive
    test: Positive


@section
class Messages:
    """Where reader messages takes dialogues from, and how their columns and keys are called; null: the usual names."""

    hub_id: Name | None
    subset: Name | None
    revision: Name
    turns: Name | None
    role: Name | None
    content: Name | None
    id: Name | None
    label: Name | None
    split: Name | None
    splits: dict[Name, Literal["train", "valid", "test"]]
    shares: Shares
    system: Literal["keep", "join", "refuse"]


@section
class Mixed:
    """A corpus of a mixture: how it is read, and its share of the train split relative to the others'."""

    reader: Reader
    weight: Annotated[float, Field(gt=0)]
    file: Name | None = None
    columns: Columns | None = None


@section
class Corpus:
    """The dialogue corpus, or a mixture of several: which files, and which reader."""

    name: Name
    reader: Reader | None
    local_dir: Name
    licence: Name | None
    file: Name | None
    columns: Columns | None
    messages: Messages
    mix: dict[Name, Mixed]
    mask: bool
    language: Annotated[str, Field(pattern="^[a-z]{2,3}$")] | None

    @property
    def local_folder(self) -> str | None:
        """`local_dir`, or None where it is the placeholder."""
        return None if self.local_dir == NO_LOCAL_DIR else self.local_dir

    @property
    def parts(self) -> dict[str, Mixed]:
        """The corpora that are read, by their folders: those of the mixture, or the one."""
        if self.reader is None:
            return self.mix
        one = {"reader": self.reader, "weight": 1.0, "file": self.file, "columns": self.columns}
        return {self.name: Mixed(**one)}


@section
class Context:
    """The targets of a dialogue, and how many turns before a target are its context."""

    targets: Literal["last", "every"]
    max_turns: Positive | None


@section
class Model(Weights):
    """The base model: pretrained, or made by stage `base`: of an encoder (`as_decoder`), or of section `tiny`.

    With source package `file` may name a GGUF file in the package, which `sha256` then pins.
    """

    file: Name | None
    as_decoder: bool
    specialised: bool
    stands_in_for: Name | None
    licence: Name | None
    quantization: Literal["nf4"] | None

    @property
    def is_made(self) -> bool:
        """Whether stage `base` pretrains it; else it is taken as it is."""
        return self.source == "made" or self.as_decoder


@section
class Tiny:
    """Architecture and pretraining of the model that stage `base` makes; of an encoder, pretraining alone."""

    vocab_size: Annotated[int, Field(ge=300, le=65536)]
    hidden_size: Positive
    intermediate_size: Positive
    layers: Positive
    heads: Positive
    max_positions: Positive
    corpus: Name
    seed: NotNegative
    epochs: Passes
    learning_rate: Rate
    batch_size: Positive
    max_length: Positive
    architecture: Literal["llama", "mistral", "gemma", "bert"]


@section
class Lora:
    """LoRA adapter (Hu et al. 2021), and the modules that are trained whole with it."""

    r: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Modules
    modules_to_save: list[Name]


@section
class Sft:
    """Hyperparameters of supervised fine-tuning, the same for all adapters."""

    epochs: Passes
    learning_rate: Rate
    batch_size: Positive
    lr_scheduler: Scheduler
    warmup_steps: Warmup
    max_length: Positive
    max_grad_norm: AtLeastZero
    weight_decay: Share
    loss_on: Literal["assistant", "user"]
    instruction: Name

    @property
    def instruction_file(self) -> Path | None:
        """The file of the instruction, or None."""
        return named_file(self.instruction)


@section
class Adapter:
    """An adapter that SFT trains: on all train dialogues, or on those that the corpus rates high or low."""

    quality: Literal["all", "high", "low"]


@section
class PairFile:
    """Of rule file: a dataset of the hub instead of `pairs.table`, the names of its splits, and the held-out share."""

    hub_id: Name | None
    revision: Name | None
    subset: Name | None
    train: Name
    test: Name
    held_out: Annotated[float, Field(ge=0, lt=1)]


@section
class Pairs:
    """Preference pairs: the rule that makes them, and what each rule reads."""

    rule: Rule
    table: Name
    fresh: bool
    limit: Positive | None
    valid: NotNegative
    instruction: Name
    file: PairFile
    margin: Share
    mechanism: Literal["er", "ip", "ex"]
    length_ratio: Annotated[float, Field(ge=1)] | None
    samples: Annotated[int, Field(ge=2)]
    max_new_tokens: Positive
    temperature: Annotated[float, Field(gt=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]

    @property
    def instruction_file(self) -> Path | None:
        """The file of the instruction, or None."""
        return named_file(self.instruction)

    @property
    def on_policy_samples(self) -> int:
        """How many samples of a round's `init` a rule takes for each example; 0: its candidates need not be samples."""
        return {"policy": 1, "epitome": self.samples}.get(self.rule, 0)


@section
class Llm:
    """What an OpenAI-compatible endpoint generates, in rounds whose candidates or scorer is one of its prompts."""

    base_url: Address
    model: Name
    prompt: Name
    judge_prompt: Name
    temperature: Annotated[float, Field(ge=0)]
    n: Positive
    max_tokens: Positive


@section
class Endpoint:
    """How the endpoint of `Llm` is reached, and its price in USD per million tokens; changes no result."""

    key_variable: Name | None
    concurrency: Positive
    retries: NotNegative
    timeout: Annotated[float, Field(gt=0)]
    input_price: Annotated[float, Field(ge=0)]
    output_price: Annotated[float, Field(ge=0)]


@section
class Round:
    """One epoch of DPO: the model that it starts from, and where its pairs come from.

    `candidates` and `scorer` are paths, since DVC takes them as dependencies of the pairs. The placeholder is
    `data/dialogues`, on which the pairs depend anyway.
    """

    init: Name
    candidates: Name
    scorer: Name

    def source(self, llm: Llm) -> Literal["corpus", "policy", "llm"]:
        """Where candidates come from: human replies, samples of the model in `init` (on-policy), or the endpoint."""
        if self.candidates == DIALOGUES:
            return "corpus"
        return "llm" if self.candidates == llm.prompt else "policy"

    def judged_by_llm(self, llm: Llm) -> bool:
        """Whether the endpoint scores the candidates, instead of a classifier."""
        return self.scorer == llm.judge_prompt


@section
class Dpo:
    """Hyperparameters of direct preference optimisation (Rafailov et al. 2023); `epochs` is the schedule's length."""

    loss: Loss
    loss_weights: list[AtLeastZero] | None
    sft_weight: AtLeastZero
    label_smoothing: Smoothing | None
    discopop_tau: Annotated[float, Field(gt=0)] | None
    simpo_gamma: AtLeastZero | None
    ld_alpha: Share | None
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
    f_alpha: float | None
    beta: Annotated[float, Field(gt=0)]
    epochs: Positive
    learning_rate: Rate
    batch_size: Positive
    lr_scheduler: Scheduler
    warmup_steps: Warmup
    max_length: Positive
    overlong: Literal["truncate", "drop"]
    max_grad_norm: AtLeastZero
    weight_decay: Share

    @property
    def losses(self) -> list[str]:
        """The names in `loss`."""
        return names(self.loss)

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares the policy with a reference model."""
        return not set(self.losses) & set(REFERENCE_FREE)

    def of_loss(self, param: str) -> float:
        """The value of a param of the losses: as set, or the usual one of the loss; 0 where no loss reads it."""
        if param == "f_alpha":
            return F_ALPHA if self.f_alpha is None else self.f_alpha
        value: float | None = getattr(self, param)
        usual = [READERS[param][loss] for loss in self.losses if loss in READERS[param]]
        return value if value is not None else next(iter(usual), 0.0)


@section
class Generate:
    """The held-out contexts, and decoding of the replies to them."""

    split: Literal["test", "valid"]
    limit: Positive | None
    max_new_tokens: Positive
    max_length: Positive
    do_sample: bool
    temperature: Annotated[float, Field(gt=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    engine: Literal["builtin", "vllm"]

    @property
    def dialogues(self) -> Path:
        """The file of the dialogues that are answered."""
        return Path(f"data/dialogues/{self.split}.parquet")
