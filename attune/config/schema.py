"""The sections of `params.yaml`, typed: what each holds, in which ranges; each key is commented in `conf/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from attune.runtime.errors import ParamsError

# Optimizer steps between two points of a training curve.
LOGGING_STEPS = 5
# Where rounds leave their models, and what stands for "nothing more than the dialogues" where a key names a dep.
ROUNDS = Path("models/dpo")
DIALOGUES = "data/dialogues"
BASE = "models/base"
# Where a rule's rounds can take their rejected replies, or their candidates, from.
SOURCES = {
    "opposite_emotion": ("opposites",),
    "dbt": ("corpus", "policy", "llm"),
    "counselling": ("sessions",),
}

Positive = Annotated[int, Field(gt=0)]
Passes = Annotated[float, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Scheduler = Literal["cosine", "linear", "constant"]
Name = Annotated[str, Field(min_length=1)]
STAGES = Path(__file__).parent


def _module(package: str, function: str, record: str, known: Iterable[str] = ()) -> AfterValidator:
    """A name that is `known`, or that of a module of `stages/<package>` whose `function` makes the `record`.

    So the file alone adds one; it is read here, not imported.
    """

    def check_name(name: str) -> str:
        texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted((STAGES / package).glob("*.py"))}
        found = [stem for stem, text in texts.items() if f"\ndef {function}(" in text and record in text]
        if name not in (names := [*known, *found]):
            raise ValueError(f"none of {', '.join(names)}; docs/extend.md adds one to stages/{package}")
        return name

    return AfterValidator(check_name)


# Readers of a csv file that may have any name, and of those the ones whose columns may have any names.
FILE_READERS = ("annomi", "mi", "ufjf")
COLUMN_READERS = ("mi",)
Reader = Annotated[str, _module("corpora", "read", "Dialogue")]
Rule = Annotated[str, _module("preferences", "build", "Pair", SOURCES)]

section = dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


@section
class Columns:
    """The names of a csv file's columns, for readers whose files differ in them."""

    dialogue: Name
    turn: Name
    role: Name
    text: Name
    act: Name


@section
class Mixed:
    """A corpus of a mixture: how it is read, and its share of the train split relative to the others'."""

    reader: Reader
    weight: Annotated[float, Field(gt=0)]
    file: Name | None = None
    columns: Columns | None = None


@section
class Corpus:
    """The dialogue corpus, or a mixture of several: which files, which reader, and what of a dialogue is answered."""

    name: Name
    reader: Reader | None
    local_dir: str | None
    targets: Literal["last", "every"]
    max_context_turns: Positive | None
    file: Name | None
    columns: Columns | None
    mix: dict[Name, Mixed]
    mask: bool
    language: Annotated[str, Field(pattern="^[a-z]{2,3}$")] | None

    @property
    def parts(self) -> dict[str, Mixed]:
        """The corpora that are read, by their folders: those of the mixture, or the one."""
        if self.reader is None:
            return self.mix
        one = {"reader": self.reader, "weight": 1.0, "file": self.file, "columns": self.columns}
        return {self.name: Mixed(**one)}


@section
class Model:
    """The base model: a hub model, or one that stage `base` makes: of an encoder (`as_decoder`), or from nothing."""

    name: Name
    package: Name | None
    hub_id: str | None
    revision: str | None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    as_decoder: bool
    specialised: bool
    stands_in_for: Name | None
    licence: Name | None
    quantization: Literal["nf4"] | None

    @property
    def is_made(self) -> bool:
        """Whether stage `base` trains it; else the hub has it as it is."""
        return self.hub_id is None or self.as_decoder


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
    epochs: Passes
    learning_rate: Rate
    batch_size: Positive
    max_length: Positive
    architecture: Literal["llama", "mistral", "gemma", "bert"]


@section
class Lora:
    """LoRA adapter on all linear layers (Hu et al. 2021)."""

    r: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]


@section
class Sft:
    """Supervised fine-tuning of the adapter; `by_quality` are further adapters, of the dialogues of one quality."""

    epochs: Passes
    learning_rate: Rate
    batch_size: Positive
    lr_scheduler: Scheduler
    warmup_steps: NotNegative
    max_length: Positive
    loss_on: Literal["assistant", "user"]
    by_quality: dict[Literal["high", "low"], Name]


@section
class Pairs:
    """Preference pairs: by opposite emotion (EmPO section 3), stages of DBT (Son and So), or quality of counselling."""

    rule: Rule
    opposites: Name
    limit: Positive | None
    judge: Literal["classifier", "llm"]
    margin: Share
    samples: Annotated[int, Field(ge=2)]
    max_new_tokens: Positive
    temperature: Annotated[float, Field(gt=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]


@section
class Llm:
    """An OpenAI-compatible endpoint that writes or judges candidates; asked only where the pairs' rule says so."""

    base_url: Annotated[str, Field(pattern="^https?://")]
    model: Name
    key_variable: Name | None
    prompt: Name
    judge_prompt: Name
    temperature: Annotated[float, Field(ge=0)]
    n: Positive
    max_tokens: Positive
    concurrency: Positive
    retries: NotNegative
    timeout: Annotated[float, Field(gt=0)]
    input_price: Annotated[float, Field(ge=0)]
    output_price: Annotated[float, Field(ge=0)]


@section
class Round:
    """One epoch of DPO: the model that it starts from, and where its pairs come from.

    `candidates` and `scorer` are what the pairs hang on beside the dialogues: the model whose samples they are, and the
    classifier that ranks them; `data/dialogues`, where there is none.
    """

    init: Name
    source: Literal["opposites", "corpus", "policy", "llm", "sessions"]
    candidates: Name
    scorer: Name


@section
class Dpo:
    """Direct preference optimisation (Rafailov et al. 2023), one round an epoch; see `chain`."""

    beta: Annotated[float, Field(gt=0)]
    epochs: Positive
    learning_rate: Rate
    batch_size: Positive
    lr_scheduler: Scheduler
    warmup_steps: NotNegative
    max_length: Positive
    rounds: Annotated[dict[str, Round], Field(min_length=1)]


@section
class Generate:
    """Decoding of the replies to the held-out contexts."""

    limit: Positive | None
    max_new_tokens: Positive
    max_length: Positive
    do_sample: bool
    temperature: Annotated[float, Field(gt=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    engine: Literal["builtin", "vllm"]


@section
class Encoder:
    """The bidirectional encoder behind the scorers: inside an installed package, or of the hub."""

    name: Name
    package: Name | None
    hub_id: str | None
    revision: str | None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None


@section
class Epitome:
    """The EPITOME classifiers (Sharma et al. 2020): what they learn from, and how."""

    corpus: Literal["sample", "epitome"]
    checkpoints: Name | None
    epochs: Positive
    learning_rate: Rate
    head_learning_rate: Rate
    batch_size: Positive
    max_length: Annotated[int, Field(ge=8)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    frozen_layers: NotNegative
    lambda_level: Annotated[float, Field(ge=0)]
    lambda_rationale: Annotated[float, Field(ge=0)]


@section
class TurnTraining:
    """How a classifier of assistant turns is trained."""

    epochs: Positive
    learning_rate: Rate
    head_learning_rate: Rate
    batch_size: Positive
    max_length: Annotated[int, Field(ge=16)]
    dropout: Annotated[float, Field(ge=0, lt=1)]


@section
class LabelTraining(TurnTraining):
    """The same, and the corpus whose labelled turns it learns from."""

    corpus: Name | None
    reader: Reader
    context_turns: Positive


@section
class Dbt(LabelTraining):
    """The classifier of the four stages of DBT, what it learns from, and which variants it scores."""

    stages: Name
    # Their names are those of the stage's files in dvc.yaml.
    classifiers: dict[Literal["dbt"], Literal["models/dbt"]]
    variants: dict[str, Literal["models/dbt"]]


@section
class Behaviour(LabelTraining):
    """The classifier of a therapist's behaviours, and which variants it and that of section `miti` score."""

    classifiers: dict[Literal["behaviour"], Literal["models/behaviour"]]
    variants: dict[str, Literal["models/behaviour"]]


@section
class Miti(TurnTraining):
    """The classifier of what adheres to motivational interviewing, and the table of acts that do."""

    adherence: Name
    corpus: Name


@section
class Bertscore:
    """BERTScore (Zhang et al. 2020) over an encoder of its own, or (without `hub_id`) over the section `encoder`."""

    hub_id: str | None
    revision: str | None
    layer: NotNegative
    batch_size: Positive


@section
class Evaluate:
    """What the variants are compared to, and how their intervals are made."""

    reference: Name
    resamples: Annotated[int, Field(ge=100)]


@section
class Mmlu:
    """Five-shot MMLU (Hendrycks et al. 2020), the harness's task on local rows."""

    corpus: Name
    shots: NotNegative
    # A standard error needs two questions.
    limit: Annotated[int, Field(ge=2)] | None
    batch_size: Positive


@section
class Variant:
    """A model to evaluate: the base model, or the folder of an adapter on it, and the file of an instruction to it.

    Without an instruction that is `data/dialogues`, which the replies hang on anyway: a dep of DVC cannot be null.
    """

    model: Name
    instruction: Name

    @property
    def instruction_file(self) -> Path | None:
        """The file of the instruction, if there is one."""
        return None if self.instruction == DIALOGUES else Path(self.instruction)


@section
class Hardware:
    """What the machine offers; nothing here changes what is computed, beyond rounding.

    But for dropout on several processes, of which each draws its own, and for moments in 8 bits.
    """

    device: Literal["cpu", "cuda"]
    dtype: Literal["bf16", "fp32"]
    threads: Positive
    micro_batch_size: Positive
    gradient_checkpointing: bool
    compile: bool
    batch_tokens: Positive
    save_every: Positive
    processes: Positive
    nodes: Positive
    # Not in its repr, by which checkpoints are found: a job may go on among other machines.
    rendezvous: Annotated[str, Field(pattern="^[^:]+:[0-9]+$")] | None = field(repr=False)
    accelerate: Name | None
    optimizer: Literal["adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Params:
    """The whole of `params.yaml`."""

    seed: NotNegative
    corpus: Corpus
    model: Model
    tiny: Tiny
    lora: Lora
    sft: Sft
    pairs: Pairs
    llm: Llm
    dpo: Dpo
    generate: Generate
    encoder: Encoder
    epitome: Epitome
    dbt: Dbt
    behaviour: Behaviour
    miti: Miti
    bertscore: Bertscore
    evaluate: Evaluate
    mmlu: Mmlu
    variants: Annotated[dict[str, Variant], Field(min_length=1)]
    hardware: Hardware


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
            raise ParamsError(f"dpo.rounds.{earlier}.init leads back to itself: {' <- '.join([earlier, *found])}")
        found.insert(0, earlier)
    return found


def bertscore_encoder(params: Params) -> Encoder:
    """The encoder of BERTScore: its own, where `bertscore.hub_id` names one, else that of the other scorers."""
    own = params.bertscore
    if own.hub_id is None:
        return params.encoder
    named = {"name": own.hub_id, "package": None, "hub_id": own.hub_id, "revision": own.revision, "sha256": None}
    return Encoder(**named)


def label_classifiers(params: Params) -> dict[str, Dbt | Behaviour]:
    """The sections whose classifiers score replies by labels; their names are those of stages, files and metrics."""
    return {"dbt": params.dbt, "behaviour": params.behaviour}
