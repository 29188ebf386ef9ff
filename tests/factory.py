"""Sections of the params for tests: small and fast, on one CPU thread. Tests name only the values that they are about.

No other test file knows all the fields of a section.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from attune.config import schema
from attune.config.params import load
from attune.corpora.readers.messages import USUAL

ROOT = Path(__file__).resolve().parents[1]
DIALOGUES = "data/dialogues"
Section = TypeVar("Section")


def _factory(section: Callable[..., Section], **defaults: object) -> Callable[..., Section]:
    """A function that builds the section from its keyword arguments over the defaults."""
    return partial(section, **defaults)


hardware = _factory(
    schema.Hardware,
    device="cpu",
    dtype="fp32",
    threads=1,
    micro_batch_size=4,
    gradient_checkpointing=False,
    compile=False,
    batch_tokens=512,
    save_every=5,
    deterministic=False,
    processes=1,
    nodes=1,
    rendezvous=None,
    accelerate=None,
    optimizer="adamw_torch_fused",
)
corpus = _factory(
    schema.Corpus,
    name="mine",
    reader="empathetic_dialogues",
    local_dir="data/sources.yaml",
    licence=None,
    file=None,
    columns=None,
    messages=USUAL,
    mix={},
    mask=False,
    language=None,
)
context = _factory(schema.Context, targets="last", max_turns=None)
columns = _factory(schema.Columns, dialogue="id", turn="n", role="who", text="sentence", act="miti")
NOWHERE = {"hub_id": None, "revision": None, "folder": "none", "package": None, "sha256": None}
model = _factory(
    schema.Model,
    name="t",
    source="made",
    **NOWHERE,
    file=None,
    as_decoder=False,
    specialised=False,
    stands_in_for=None,
    licence=None,
    quantization=None,
)
tiny = _factory(
    schema.Tiny,
    vocab_size=400,
    hidden_size=32,
    intermediate_size=64,
    layers=2,
    heads=2,
    max_positions=128,
    corpus="sample",
    seed=13,
    epochs=1,
    learning_rate=1e-3,
    batch_size=4,
    max_length=64,
    architecture="llama",
)
SCHEDULE = {
    "epochs": 1,
    "learning_rate": 5e-3,
    "batch_size": 4,
    "lr_scheduler": "cosine",
    "warmup_steps": 0,
    "max_length": 64,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
}
lora = _factory(schema.Lora, r=4, alpha=8, dropout=0.0, target_modules="all-linear", modules_to_save=[])
sft = _factory(
    schema.Sft,
    **SCHEDULE,
    loss_on="assistant",
    instruction=DIALOGUES,
)
adapter = _factory(schema.Adapter, quality="all")
pair_file = _factory(schema.PairFile, hub_id=None, revision=None, subset=None, train="train", test="test", held_out=0.0)
pairs = _factory(
    schema.Pairs,
    rule="opposite_emotion",
    table="data/opposite_emotions.csv",
    fresh=True,
    limit=None,
    valid=0,
    instruction=DIALOGUES,
    file=pair_file(),
    margin=0.1,
    mechanism="er",
    length_ratio=None,
    samples=2,
    max_new_tokens=6,
    temperature=1.0,
    top_p=0.95,
)
llm = _factory(
    schema.Llm,
    base_url="http://127.0.0.1/v1",
    model="m",
    prompt="data/prompts/dbt_replies.txt",
    judge_prompt="data/prompts/dbt_judge.txt",
    temperature=1.0,
    n=2,
    max_tokens=64,
)
endpoint = _factory(
    schema.Endpoint,
    key_variable=None,
    concurrency=3,
    retries=3,
    timeout=20.0,
    input_price=1.0,
    output_price=2.0,
)
dpo_round = _factory(schema.Round, init="models/sft", candidates=DIALOGUES, scorer=DIALOGUES)
dpo = _factory(
    schema.Dpo,
    loss="sigmoid",
    loss_weights=None,
    sft_weight=0.0,
    label_smoothing=None,
    discopop_tau=None,
    simpo_gamma=None,
    ld_alpha=None,
    f_divergence="reverse_kl",
    f_alpha=None,
    beta=0.1,
    overlong="truncate",
    **SCHEDULE,
)
generate = _factory(
    schema.Generate,
    split="test",
    limit=None,
    max_new_tokens=8,
    max_length=64,
    do_sample=False,
    temperature=1.0,
    top_p=1.0,
    engine="builtin",
)
encoder = _factory(schema.Encoder, name="e", source="made", **NOWHERE)
epitome = _factory(
    schema.Epitome,
    data="data/sample/epitome",
    levels="data/sample/epitome",
    checkpoints="data/sample/epitome",
    seed=13,
    epochs=2,
    learning_rate=1e-3,
    head_learning_rate=1e-3,
    batch_size=8,
    max_length=64,
    dropout=0.2,
    frozen_layers=0,
    lambda_level=1.0,
    lambda_rationale=0.5,
)
classifier = _factory(schema.Classifier, data="d", sentences="d", table="d")
mmlu = _factory(schema.Mmlu, corpus="sample", form="letters", shots=1, limit=2, batch_size=4)
judge = _factory(
    schema.Judge,
    base_url="http://127.0.0.1/v1",
    model="m",
    prompt=str(ROOT / "data/prompts/judge.txt"),
    max_tokens=64,
    limit=None,
    rated="data/ratings.csv",
    rating="empathetic",
    rated_limit=None,
    least_kappa=0.2,
)
safety = _factory(schema.Safety, limit=2, gate="warn", judge_prompt=str(ROOT / "data/prompts/safety_judge.txt"))
converse = _factory(
    schema.Converse,
    limit=3,
    seeker="scripts",
    base_url="http://127.0.0.1/v1",
    model="m",
    prompt=str(ROOT / "data/prompts/seeker.txt"),
    max_tokens=32,
)
truth = _factory(schema.Truth, corpus="sample", limit=6, medical=["nutrition"], batch_size=4)
variant = _factory(schema.Variant, model="models/base", instruction=DIALOGUES)

_committed = cache(partial(load, ROOT / "params.yaml"))


def params(**changes: object) -> schema.Params:
    """The committed params on the hardware of tests, with these sections (or this hardware) instead of theirs."""
    machine = changes.pop("hardware", None) or hardware()
    return replace(_committed().with_hardware(machine), **changes)
