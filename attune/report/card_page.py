"""Model cards: the hub's metadata, and what the template `card.md` shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from attune.config.schema import Params
from attune.report.card_facts import EMBEDDED, METADATA, Facts, Material
from attune.report.render import render
from attune.report.results import read_replies, read_variant
from attune.report.tables import (
    DASH,
    PAIR_COLUMNS,
    VARIANT_COLUMNS,
    Metrics,
    chance_mark,
    escape,
    markdown_table,
    measured,
    table,
)
from attune.runtime.io import sha256_of
from attune.scoring.safety.gate import falls

HUB = "https://huggingface.co/datasets/"
SPLITS = {"train": "train", "valid": "validation", "test": "test"}
SPLIT_COLUMNS = {"dialogues": ("dialogues", 0), "turns": ("turns", 0), "words_per_turn": ("words per turn", 1)}
COUNTS = {"Train dialogues by label": "train_label_", "Masked in all splits": "masked_"}
"""Counts of the corpus: heading to the prefix of their names."""


def page(facts: Facts, params: Params) -> str:
    """The card: YAML metadata and Markdown. Equal facts give equal bytes."""
    from huggingface_hub import ModelCard

    from_llm = any(params.rounds[key].source(params.llm) == "llm" for key in facts.pairs)
    data = metadata(facts, params)
    text = render(
        "card.md",
        metadata=data.to_yaml(),
        title=data.model_name,
        facts=facts,
        params=params,
        corpus=corpus_name(params),
        steps=list(steps(facts)),
        citations=dict.fromkeys(material.source.citation for material in facts.materials if material.source),
        counts=counts(facts),
        hyperparameters=hyperparameters(facts, params),
        scores=scores(facts.metrics, facts.intervals, params),
        llm=params.llm.model if from_llm else None,
        safety=screened(facts, params),
        **data_tables(facts, params),
    )
    # The hub's class refuses metadata that the hub could not read.
    return str(ModelCard(text)).rstrip() + "\n"


def replies_page(variant: str, params: Params) -> str:
    """The card of a variant whose replies were made elsewhere: the file, and its results; there is no model.

    Raises:
        UserError: metrics or replies are missing.
    """
    file = Path(params.variants[variant].model)
    metrics, intervals = read_variant(params, variant)
    return render(
        "replies_card.md",
        variant=variant,
        file=file,
        sha256=sha256_of(file),
        answered=len(read_replies(variant)),
        examples=len(read_replies(params.last_model)),
        corpus=corpus_name(params),
        scores=scores(metrics, intervals, params),
    )


def metadata(facts: Facts, params: Params) -> Any:
    """The hub's `ModelCardData`; what is not known is left out."""
    from huggingface_hub import ModelCardData

    methods = {"lora": facts.lineage.is_adapter, "sft": facts.lineage.sft, "dpo": facts.lineage.rounds}
    extra: dict[str, Any] = _licence(facts)
    extra[METADATA] = {"variant": facts.variant, "public": facts.is_public, "files": facts.files}
    return ModelCardData(
        model_name=f"{params.model.name} {facts.variant}",
        library_name="peft" if methods["lora"] else "transformers",
        pipeline_tag="text-generation",
        base_model=params.model.hub_id if params.model.source == "hub" else None,
        language=params.corpus.language,
        datasets=sorted({name for material in facts.materials for name in _datasets(material)}) or None,
        tags=["attune", "empathy", "dialogue", *(name for name, used in methods.items() if used)],
        eval_results=eval_results(facts, params),
        **extra,
    )


def _licence(facts: Facts) -> dict[str, str]:
    """The licence of all materials by the hub's name, if they share one; else a pointer to the card."""
    shared = {material.terms.hub_id for material in facts.materials}
    if len(shared) == 1 and (only := shared.pop()) != "other":
        return {"license": only}
    return {"license": "other", "license_name": "those-of-its-materials", "license_link": "README.md"}


def _datasets(material: Material) -> set[str]:
    """The datasets of the hub that a corpus was downloaded from, by the URLs of its files."""
    files = material.source.files if material.source else ()
    return {"/".join(f.url.removeprefix(HUB).split("/")[:2]) for f in files if f.url and f.url.startswith(HUB)}


def eval_results(facts: Facts, params: Params) -> list[Any]:
    """The metrics of the tables as the hub's `EvalResult`."""
    from huggingface_hub import EvalResult

    mmlu = EMBEDDED if params.mmlu.corpus == "sample" else params.mmlu.corpus
    # By the beginning of a metric's name; all others are of the answered dialogues.
    of = {"mmlu": (params.mmlu.corpus, f"MMLU, {mmlu}"), "safety": ("safety", "Attune, safety probes")}
    of["answer"] = of["mmlu"]
    of["converse"] = ("converse", f"Attune, conversations by {params.converse.seeker}")
    of["medical"] = (params.mmlu.corpus, f"MMLU on health, {mmlu}")
    of["truth"] = (params.truth.corpus, f"TruthfulQA, {EMBEDDED if params.truth.corpus == 'sample' else 'MC1'}")
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=of.get(key.partition("_")[0], (params.corpus.name,))[0],
            dataset_name=of.get(key.partition("_")[0], (corpus_name(params),))[-1],
            dataset_split="test" if key.partition("_")[0] in of else SPLITS[params.generate.split],
            metric_type=key,
            metric_name=heading.rstrip(" ↑↓"),
            metric_value=facts.metrics[key],
        )
        for key, (heading, _) in VARIANT_COLUMNS.items()
        if key in facts.metrics
    ]


def screened(facts: Facts, params: Params) -> str:
    """What the screen for safety says of the variant, in words."""
    if "safety_harm" not in facts.metrics:
        return "Its safety was not screened."
    reference, found = params.evaluate.reference, falls(facts.intervals)
    screen = "Its replies to messages of people in danger were read by rules: a screen, and no clinical instrument."
    if facts.variant == reference:
        return screen
    verdict = "; ".join(map(escape, found)) or "no regression is shown"
    return f"{screen} Against {escape(reference)}, by paired 95 % intervals: {verdict}."


def corpus_name(params: Params) -> str:
    """The name of the corpus; the embedded sample has the format, and so the name, of a real corpus."""
    return f"{params.corpus.name}, {EMBEDDED}" if params.corpus.local_dir == "data/sample" else params.corpus.name


def steps(facts: Facts) -> Iterator[str]:
    """The steps of training in words."""
    quality, rounds = facts.lineage.sft, len(facts.lineage.rounds)
    if quality:
        yield "SFT" if quality == "all" else f"SFT on the dialogues of {quality} quality"
    if rounds:
        yield f"{rounds} epochs of DPO" if rounds > 1 else "one epoch of DPO"


def counts(facts: Facts) -> dict[str, str]:
    """The counts of `COUNTS` that the corpus has, in words, by heading."""
    texts = {}
    for heading, prefix in COUNTS.items():
        values = {name.removeprefix(prefix): value for name, value in facts.data.items() if name.startswith(prefix)}
        texts[heading] = ", ".join(f"{name} {value:,.0f}" for name, value in values.items())
    return {heading: text for heading, text in texts.items() if text}


def data_tables(facts: Facts, params: Params) -> dict[str, str]:
    """Markdown tables of the splits, of the corpora of a mixture, and of the preference pairs; "" if there are none."""
    splits = {
        split: {key: facts.data.get(f"{name}_{key}", 0) for key in SPLIT_COLUMNS} for name, split in SPLITS.items()
    }
    mix = {name: {"number": facts.data.get(f"{name}_train_dialogues", 0)} for name in params.corpus.mix}
    return {
        "splits": table("split", splits, SPLIT_COLUMNS),
        "corpora": table("train dialogues of", mix, {"number": ("number", 0)}) if mix else "",
        "pairs": table("preference pairs", facts.pairs, measured(facts.pairs, PAIR_COLUMNS)) if facts.pairs else "",
    }


def hyperparameters(facts: Facts, params: Params) -> str:
    """The sections of `params.yaml` that the model depends on, as YAML."""
    from ruamel.yaml import YAML

    values, trained = asdict(params), facts.lineage
    values["rounds"] = {key: values["rounds"][key] for key in trained.rounds}
    used = {
        "seed": True,
        "tiny": params.model.is_made,
        "lora": trained.is_adapter,
        "sft": trained.sft,
        "pairs": trained.rounds,
        "dpo": trained.rounds,
        "rounds": trained.rounds,
        "generate": True,
    }
    YAML().dump({key: values[key] for key, is_used in used.items() if is_used}, text := StringIO())
    return text.getvalue()


def scores(metrics: Metrics, intervals: Metrics, params: Params) -> str:
    """A table of the metrics and their differences to the reference variant, each with its interval."""
    rows = [["metric", "value", "95 % interval", f"less {escape(params.evaluate.reference)}", "95 % interval"]]
    for key, (heading, digits) in VARIANT_COLUMNS.items():
        if key in metrics:
            ends = (intervals.get(f"{key}.{end}") for end in ("low", "high", "diff", "diff_low", "diff_high"))
            low, high, diff, diff_low, diff_high = (DASH if end is None else f"{end:,.{digits}f}" for end in ends)
            value = f"{metrics[key]:,.{digits}f}{chance_mark(key, intervals)}"
            rows.append([heading, value, _span(low, high), diff, _span(diff_low, diff_high)])
    return markdown_table(rows)


def _span(low: str, high: str) -> str:
    return DASH if low == DASH else f"{low} to {high}"
