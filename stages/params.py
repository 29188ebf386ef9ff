"""The typed schema of `params.yaml`: what every section holds, and its ranges.

`conf/` composes the values (each key is commented there with unit, range and source), DVC writes them to
`params.yaml`, and a stage reads it whole and hands its function the sections that it needs::

    params = load()
    train(adapter, dialogues, params.sft, params.lora, params.hardware, params.seed)

A key that is unknown, missing or out of range is a `ParamsError` that names the key, the value and the file.
`python -m stages.params recipe=empo model=tiny` composes `params.yaml` without running anything.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from stages.errors import UserError, reported
from stages.files import read_yaml

PARAMS_FILE = Path("params.yaml")
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
Value = TypeVar("Value")
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


class ParamsError(UserError):
    """`params.yaml` (or a composed configuration) does not fit the schema."""


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
class Dbt(TurnTraining):
    """The classifier of the four stages of DBT, what it learns from, and which variants it scores."""

    stages: Name
    corpus: Name | None
    reader: Reader
    context_turns: Positive
    # Their names are those of the stage's files in dvc.yaml.
    classifiers: dict[Literal["dbt"], Literal["models/dbt"]]
    variants: dict[str, Literal["models/dbt"]]


@section
class Behaviour(TurnTraining):
    """The classifier of a therapist's behaviours, and which variants it and that of section `miti` score."""

    corpus: Name | None
    reader: Reader
    context_turns: Positive
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


def label_scorers(params: Params) -> dict[str, Dbt | Behaviour]:
    """The sections whose classifiers score replies by labels; their names are those of stages, files and metrics."""
    return {"dbt": params.dbt, "behaviour": params.behaviour}


def named(values: Mapping[Any, Value], name: str, key: str) -> Value:
    """What the params give, under `key`, to the `name` that a command line asked for.

    Raises:
        ParamsError: they give nothing; lists the names that have something.
    """
    if name not in values:
        raise ParamsError(f"{name!r} is none of {key}: {', '.join(values) or 'there are none'}")
    return values[name]


def folder_of(folders: Mapping[Any, str], name: str, key: str) -> Path:
    """`named`, of folders."""
    return Path(named(folders, name, key))


def load(path: Path = PARAMS_FILE, source: str | None = None) -> Params:
    """Read and check `path`; errors call it `source`, where that says more than its name.

    Raises:
        ParamsError: the file is missing or is no YAML mapping, or a key is unknown, missing or out of range.
    """
    values = read_yaml(path, ParamsError, "run from the project's root, or write it with `make params`")
    return check(values, source or str(path))


def check(values: Any, source: str) -> Params:
    """Check a composed configuration; `source` names where it came from in the errors.

    Raises:
        ParamsError: naming each offending key, its value and `source`.
    """
    try:
        # Through JSON, since in strict mode pydantic takes a dataclass from an object of JSON but not from a dict. What
        # JSON does not have, a date that YAML read out of `2024-01-31`, becomes the string that it was.
        params = TypeAdapter(Params).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ParamsError("\n".join(_sentence(problem, source) for problem in error.errors())) from None
    _check_across_keys(params, source)
    return params


def _sentence(problem: Any, source: str) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "(the whole file)"
    match problem["type"]:
        case "missing":
            return f"{source}: key {key} is missing"
        case "unexpected_keyword_argument":
            return f"{source}: key {key} is unknown (value {problem['input']!r})"
        case _:
            return f"{source}: {key} = {problem['input']!r}: {problem['msg'].lower()}"


def _check_across_keys(params: Params, source: str) -> None:
    """Conditions that join two keys."""
    _check_corpus(params.corpus, source)
    _check_rounds(params, source)
    for stage in ("sft", "dpo"):
        batch = getattr(params, stage).batch_size
        if batch % min(batch, params.hardware.micro_batch_size):
            raise ParamsError(
                f"{source}: {stage}.batch_size = {batch} is no multiple of hardware.micro_batch_size = "
                f"{params.hardware.micro_batch_size}"
            )
    _check_processes(params.hardware, source)
    if params.hardware.save_every % LOGGING_STEPS:
        # The mean since the last point is not part of a checkpoint: off this grid a resumed run has another curve.
        raise ParamsError(
            f"{source}: hardware.save_every = {params.hardware.save_every} is no multiple of {LOGGING_STEPS}, the "
            "steps between two points of a training curve"
        )
    if params.tiny.hidden_size % params.tiny.heads:
        raise ParamsError(
            f"{source}: tiny.hidden_size = {params.tiny.hidden_size} is no multiple of tiny.heads = {params.tiny.heads}"
        )
    if params.generate.max_new_tokens >= params.generate.max_length:
        raise ParamsError(
            f"{source}: generate.max_new_tokens = {params.generate.max_new_tokens} leaves no room for a prompt "
            f"within generate.max_length = {params.generate.max_length}"
        )
    if params.evaluate.reference not in params.variants:
        raise ParamsError(
            f"{source}: evaluate.reference = {params.evaluate.reference!r} is none of the variants: "
            f"{', '.join(params.variants)}"
        )
    if params.generate.engine == "vllm" and _is_bert(params):
        raise ParamsError(
            f"{source}: generate.engine = 'vllm' does not know BERT as a decoder, a class of this project: set "
            "generate.engine = builtin"
        )
    _check_label_scorers(params, source)
    for name in ("model", "bertscore"):
        one = getattr(params, name)
        if one.hub_id is not None and not one.revision:
            raise ParamsError(f"{source}: {name}.revision is missing for {name}.hub_id = {one.hub_id!r}")
    _check_encoder(params.encoder, source)
    _check_model(params.model, source)


def _check_processes(hardware: Hardware, source: str) -> None:
    if (hardware.nodes > 1) is not (hardware.rendezvous is not None):
        raise ParamsError(
            f"{source}: hardware.rendezvous = {hardware.rendezvous!r} with hardware.nodes = {hardware.nodes}: several "
            "machines meet at host:port of the first, one needs none (null)"
        )
    if hardware.accelerate is not None and hardware.device == "cpu":
        raise ParamsError(f"{source}: hardware.accelerate = {hardware.accelerate!r} is for GPUs: null on a CPU")


def _is_bert(params: Params) -> bool:
    return params.model.as_decoder or (params.model.hub_id is None and params.tiny.architecture == "bert")


def _check_corpus(corpus: Corpus, source: str) -> None:
    """One corpus or a mixture, and file and columns only where the reader knows them."""
    if (corpus.reader is None) is not bool(corpus.mix):
        raise ParamsError(
            f"{source}: corpus.reader = {corpus.reader!r} with {len(corpus.mix)} corpora in corpus.mix: a mixture "
            "names the readers of its corpora and has none itself"
        )
    if corpus.mix and (corpus.file or corpus.columns):
        raise ParamsError(f"{source}: corpus.file and corpus.columns must be null in a mixture, whose corpora have own")
    for name, part in corpus.parts.items():
        where = f"{source}: corpus.mix.{name}" if corpus.mix else f"{source}: corpus"
        if part.file and part.reader not in FILE_READERS:
            raise ParamsError(f"{where}.file = {part.file!r}: reader {part.reader} reads files of fixed names")
        if part.columns and part.reader not in COLUMN_READERS:
            raise ParamsError(f"{where}.columns: reader {part.reader} reads columns of fixed names")


def _check_rounds(params: Params, source: str) -> None:
    """Each chain of rounds fits the schedule, and each round's source the rule and its other keys."""
    rounds = params.dpo.rounds
    for key, one in rounds.items():
        length = len(chain(rounds, key))
        if length > params.dpo.epochs:
            raise ParamsError(
                f"{source}: dpo.rounds.{key} is round {length} from its start, but the learning-rate schedule ends "
                f"after dpo.epochs = {params.dpo.epochs}: raise dpo.epochs (which re-runs every round) or drop a round"
            )
        where = f"{source}: dpo.rounds.{key}"
        # A rule of one's own draws from the train replies, as that of the opposites does.
        sources = SOURCES.get(params.pairs.rule, SOURCES["opposite_emotion"])
        if one.source not in sources:
            raise ParamsError(
                f"{where}.source = {one.source!r} is none of pairs.rule = {params.pairs.rule!r}: {', '.join(sources)}"
            )
        wanted = one.init if one.source == "policy" else DIALOGUES
        if one.candidates != wanted:
            raise ParamsError(
                f"{where}.candidates = {one.candidates!r}, but source = {one.source!r} needs {wanted!r}: "
                "samples are of the model that the round starts from, all else comes from the dialogues"
            )
        classified = params.pairs.rule == "dbt" and params.pairs.judge == "classifier"
        if classified is (one.scorer == DIALOGUES):
            raise ParamsError(
                f"{where}.scorer = {one.scorer!r}: the folder of a classifier where pairs.rule = 'dbt' has one judge, "
                f"and {DIALOGUES!r} where none is asked"
            )


def _check_label_scorers(params: Params, source: str) -> None:
    for name, scorer in label_scorers(params).items():
        if missing := sorted(set(scorer.variants) - set(params.variants)):
            raise ParamsError(f"{source}: {name}.variants names {', '.join(missing)}, none of variants")
        if scorer.variants and not scorer.classifiers:
            raise ParamsError(f"{source}: {name}.variants are scored by a classifier, but {name}.classifiers is empty")
        if scorer.variants and params.evaluate.reference not in scorer.variants:
            raise ParamsError(
                f"{source}: evaluate.reference = {params.evaluate.reference!r} is none of {name}.variants: "
                f"{', '.join(scorer.variants)}"
            )


def _check_encoder(encoder: Encoder, source: str) -> None:
    if (encoder.package is None) == (encoder.hub_id is None):
        raise ParamsError(
            f"{source}: one of encoder.package = {encoder.package!r} and encoder.hub_id = {encoder.hub_id!r} must be "
            "null, and only one"
        )
    if encoder.hub_id is not None and not encoder.revision:
        raise ParamsError(f"{source}: encoder.revision is missing for encoder.hub_id = {encoder.hub_id!r}")


def _check_model(model: Model, source: str) -> None:
    if model.package is not None and model.hub_id is not None:
        raise ParamsError(
            f"{source}: one of model.package = {model.package!r} and model.hub_id = {model.hub_id!r} must be null"
        )
    if model.as_decoder and model.package is None and model.hub_id is None:
        raise ParamsError(f"{source}: model.as_decoder = true needs an encoder: model.package or model.hub_id")
    if model.package is not None and not model.as_decoder:
        raise ParamsError(f"{source}: model.package = {model.package!r} is for encoders: set model.as_decoder = true")
    if model.stands_in_for is not None and not model.specialised:
        raise ParamsError(
            f"{source}: model.stands_in_for = {model.stands_in_for!r} is for what is compared as a specialised model: "
            "set model.specialised = true"
        )
    if model.quantization is not None and model.as_decoder:
        raise ParamsError(
            f"{source}: model.quantization = {model.quantization!r} is for models of the hub, and "
            "model.as_decoder = true makes one here: set model.quantization = null"
        )


def compose(overrides: list[str], target: Path = PARAMS_FILE) -> None:
    """Compose `conf/` with Hydra `overrides` as `dvc exp run -S` does, check the result and write it to `target`.

    Raises:
        ParamsError: a group, option or key does not exist, or a value does not fit.
    """
    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException

    trial = target.with_name(f".{target.name}")
    named = " ".join(overrides) or "its defaults"
    try:
        compose_and_dump(trial, str(Path("conf").resolve()), None, "config", str(Path(".dvc").resolve()), overrides)
        load(trial, f"conf/ composed with {named}")
        trial.replace(target)
    except HydraException as error:
        raise ParamsError(f"conf/ does not compose with {named}: {error}") from None
    finally:
        trial.unlink(missing_ok=True)


if __name__ == "__main__":
    with reported():
        compose(sys.argv[1:])
