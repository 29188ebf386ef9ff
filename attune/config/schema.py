"""The sections of `params.yaml`, typed: what each holds, in which ranges; each key is commented in `conf/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from attune.runtime.errors import ParamsError

# Optimizer steps between two points of a training curve.
LOGGING_STEPS = 5
# Where rounds leave their models, and what stands for "nothing more than the dialogues" where a key names a dep.
ROUNDS = Path("models/dpo")
DIALOGUES = "data/dialogues"
BASE = "models/base"
DBT = "models/dbt"
RULES = ("opposite_emotion", "dbt", "counselling")

Positive = Annotated[int, Field(gt=0)]
Passes = Annotated[float, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Scheduler = Literal["cosine", "linear", "constant"]
Name = Annotated[str, Field(min_length=1)]
LIBRARY = Path(__file__).parents[1]


def _module(package: str, function: str, record: str, known: Iterable[str] = ()) -> AfterValidator:
    """A name in `known`, or that of a module of `attune/<package>` whose `function` returns the `record`.

    A file alone adds one; its text is read here, it is not imported.
    """

    def check_name(name: str) -> str:
        texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted((LIBRARY / package).glob("*.py"))}
        found = [stem for stem, text in texts.items() if f"\ndef {function}(" in text and record in text]
        if name not in (names := [*known, *found]):
            raise ValueError(f"none of {', '.join(names)}; docs/extend.md adds one to attune/{package}")
        return name

    return AfterValidator(check_name)


# Readers of a csv file that may have any name, and of those the ones whose columns may have any names.
FILE_READERS = ("annomi", "mi", "ufjf")
COLUMN_READERS = ("mi",)
Reader = Annotated[str, _module("corpora/readers", "read", "Dialogue")]
Rule = Annotated[str, _module("pairs", "build", "Pair", RULES)]

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
    """The dialogue corpus, or a mixture of several: which files, and which reader."""

    name: Name
    reader: Reader | None
    local_dir: str | None
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
class Context:
    """The targets of a dialogue, and how many turns before a target are its context."""

    targets: Literal["last", "every"]
    max_turns: Positive | None


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
    """Hyperparameters of supervised fine-tuning, the same for all adapters."""

    epochs: Passes
    learning_rate: Rate
    batch_size: Positive
    lr_scheduler: Scheduler
    warmup_steps: NotNegative
    max_length: Positive
    loss_on: Literal["assistant", "user"]


@section
class Adapter:
    """An adapter that SFT trains: on all train dialogues, or on those that the corpus rates high or low."""

    quality: Literal["all", "high", "low"]


@section
class Pairs:
    """Preference pairs: by opposite emotion (EmPO section 3), stages of DBT (Son and So), or quality of counselling."""

    rule: Rule
    table: Name
    limit: Positive | None
    margin: Share
    samples: Annotated[int, Field(ge=2)]
    max_new_tokens: Positive
    temperature: Annotated[float, Field(gt=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]


@section
class Llm:
    """What an OpenAI-compatible endpoint generates, in rounds whose candidates or scorer is one of its prompts."""

    base_url: Annotated[str, Field(pattern="^https?://")]
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

    `candidates` and `scorer` are paths, since DVC takes them as dependencies of the pairs; `data/dialogues`, on which the
    pairs depend anyway, is the placeholder.
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

    beta: Annotated[float, Field(gt=0)]
    epochs: Positive
    learning_rate: Rate
    batch_size: Positive
    lr_scheduler: Scheduler
    warmup_steps: NotNegative
    max_length: Positive


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

    data: Literal["data/sample/epitome", "data/raw/epitome"]
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
class Dbt(TurnTraining):
    """The classifier of the four stages of DBT: the labelled turns that it learns from, and how."""

    table: Name
    data: Name
    reader: Reader
    context_turns: Positive


@section
class Behaviour(TurnTraining):
    """The classifiers of a counsellor's behaviours and of adherence to motivational interviewing (`miti`)."""

    table: Name
    sentences: Name
    data: Name
    reader: Reader
    context_turns: Positive
    miti: TurnTraining


@section
class Classifier:
    """The files that a classifier in use learns from, as DVC dependencies; a repeated path stands for "none"."""

    data: Name
    sentences: Name
    table: Name


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
class Compute:
    """Device, precision and threads: what every stage that runs torch depends on."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["bf16", "fp32"]
    threads: Positive


@section
class Ranks:
    """The processes (ranks) that share a stage, and the file of Accelerate that says how they share a model."""

    processes: Positive
    nodes: Positive
    accelerate: Name | None


@section
class Training:
    """How a training step is computed; the effective batch does not depend on it."""

    micro_batch_size: Positive
    gradient_checkpointing: bool
    compile: bool
    optimizer: Literal["adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]


@section
class Decoding:
    """Tokens in a batch of `generate`, and of samples of the policy."""

    batch_tokens: Positive


@section
class Runtime:
    """What changes no result: steps between checkpoints, and where several machines meet."""

    save_every: Positive
    rendezvous: Annotated[str, Field(pattern="^[^:]+:[0-9]+$")] | None


@dataclass(frozen=True)
class Hardware:
    """The sections compute, ranks, training, decoding and runtime as one object, for code that needs several.

    Nothing here changes what is computed, beyond rounding. Exceptions: per-rank dropout masks, and 8-bit moments.
    """

    device: Literal["cpu", "cuda"]
    dtype: Literal["bf16", "fp32"]
    threads: int
    micro_batch_size: int
    gradient_checkpointing: bool
    compile: bool
    batch_tokens: int
    save_every: int
    processes: int
    nodes: int
    rendezvous: str | None
    accelerate: str | None
    optimizer: Literal["adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]


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
    scorers: list[Literal["text", "epitome", "dbt", "behaviour"]]
    epitome: Epitome
    dbt: Dbt
    behaviour: Behaviour
    bertscore: Bertscore
    evaluate: Evaluate
    mmlu: Mmlu
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
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
    named = {"name": own.hub_id, "package": None, "hub_id": own.hub_id, "revision": own.revision, "sha256": None}
    return Encoder(**named)
