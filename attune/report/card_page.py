"""The text of a model card: metadata of the hub, and Markdown for people."""

from __future__ import annotations

from dataclasses import asdict
from io import StringIO
from typing import Any

from attune.config.schema import Params
from attune.report.card_facts import EMBEDDED, Facts, Material
from attune.report.tables import DASH, PAIR_COLUMNS, VARIANT_COLUMNS, escape, markdown_table, measured, table

OWN = "attune"
"""The key of the metadata that is the project's own: `variant`, `public` and the sha256 of the `files`."""
HUB = "https://huggingface.co/datasets/"
SPLITS = {"train": "train", "valid": "validation", "test": "test"}

PUBLIC = (
    "No text of a corpus is among the files. A licence that forbids to pass a corpus on does not by itself forbid to "
    "pass on a model that learnt from it; its other conditions are taken here to hold for the model, too."
)
PRIVATE = (
    "**Not to be made public**: a licence above was not stated, or lets only some people use the data. A model can "
    "repeat what it learnt."
)
SCORES = (
    "↑ higher is better, ↓ lower is better; shares x 100. `docs/metrics.md` of the project defines every metric. "
    "Intervals are over the test dialogues (MMLU: over its questions), not over seeds."
)


def page(facts: Facts, params: Params) -> str:
    """The card as Markdown with metadata before it; the same facts give the same bytes."""
    from huggingface_hub import ModelCard

    card = ModelCard(f"---\n{metadata(facts, params).to_yaml()}\n---\n\n{body(facts, params)}")
    return str(card).rstrip() + "\n"


def metadata(facts: Facts, params: Params) -> Any:
    """The hub's `ModelCardData`: what can be stated, and nothing for what cannot."""
    from huggingface_hub import ModelCardData

    trained = facts.lineage
    methods = {"lora": trained.is_adapter, "sft": trained.sft, "dpo": trained.rounds}
    more: dict[str, Any] = _licence(facts)
    more[OWN] = {"variant": facts.variant, "public": facts.is_public, "files": facts.files}
    return ModelCardData(
        model_name=title(facts, params),
        library_name="peft" if methods["lora"] else "transformers",
        pipeline_tag="text-generation",
        base_model=params.model.hub_id,
        language=params.corpus.language,
        datasets=sorted({name for one in facts.materials for name in _datasets(one)}) or None,
        tags=["attune", "empathy", "dialogue", *(name for name, used in methods.items() if used)],
        eval_results=results(facts, params),
        **more,
    )


def title(facts: Facts, params: Params) -> str:
    """The name of the variant and of the base model."""
    return f"{params.model.name} {facts.variant}"


def _licence(facts: Facts) -> dict[str, str]:
    """The licence that all of the materials share, by the hub's name; else that the card lists several."""
    shared = {one.terms.hub_id for one in facts.materials}
    if len(shared) == 1 and (only := shared.pop()) != "other":
        return {"license": only}
    return {"license": "other", "license_name": "those-of-its-materials", "license_link": "README.md"}


def _datasets(one: Material) -> set[str]:
    """The names of the hub's datasets that a corpus was taken from, by the addresses of its files."""
    files = one.source.files if one.source else ()
    return {"/".join(f.url.removeprefix(HUB).split("/")[:2]) for f in files if f.url and f.url.startswith(HUB)}


def results(facts: Facts, params: Params) -> list[Any]:
    """The metrics of the tables as the hub's `EvalResult`, with the values of the metrics files."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=params.mmlu.corpus if key == "mmlu" else params.corpus.name,
            dataset_name=("MMLU, " if key == "mmlu" else "") + _corpus(params, key),
            dataset_split="test",
            metric_type=key,
            metric_name=_plain(heading),
            metric_value=facts.metrics[key],
        )
        for key, (heading, _) in VARIANT_COLUMNS.items()
        if key in facts.metrics
    ]


def _corpus(params: Params, key: str = "") -> str:
    """The name of what was asked; the embedded sample has the format, and so the name, of a real corpus."""
    if key == "mmlu":
        return EMBEDDED if params.mmlu.corpus == "sample" else params.mmlu.corpus
    return f"{params.corpus.name}, {EMBEDDED}" if params.corpus.local_dir == "data/sample" else params.corpus.name


def _plain(heading: str) -> str:
    return heading.rstrip(" ↑↓")


def body(facts: Facts, params: Params) -> str:
    """The card without its metadata."""
    parts = [lead(facts, params), facts.use, licences(facts), composition(facts, params), training(facts, params)]
    return "\n\n".join([*parts, scores(facts, params), usage(facts, params)])


def lead(facts: Facts, params: Params) -> str:
    """What the model is, in a paragraph."""
    origin = f"`{params.model.hub_id}`" if params.model.hub_id else "made and pretrained by the pipeline"
    commit = f" at commit `{facts.commit}`" if facts.commit else ""
    trained = facts.lineage
    steps = []
    if trained.sft:
        steps.append("SFT" + ("" if trained.sft == "all" else f" on the dialogues of {trained.sft} quality"))
    if trained.rounds:
        steps.append(f"{len(trained.rounds)} epochs of DPO" if len(trained.rounds) > 1 else "an epoch of DPO")
    what = f"A LoRA adapter by {' and then '.join(steps)} on" if steps else "The unaligned"
    text = (
        f"# {escape(title(facts, params))}\n\n{what} {escape(params.model.name)} ({origin}{commit}), made by the "
        f"pipeline Attune. Corpus: {escape(_corpus(params))}. What it writes is unchecked, and none of it is counsel."
    )
    if params.model.quantization:
        text += (
            "\n\nThe linear layers of the base model were held in 4 bits (NF4, by bitsandbytes) in training and in all "
            "that was measured; loaded whole it answers otherwise."
        )
    if facts.instruction:
        quoted = "\n> ".join(escape(line) for line in facts.instruction.splitlines())
        text += f"\n\nBefore every conversation stands this instruction:\n\n> {quoted}"
    return text


def licences(facts: Facts) -> str:
    """What the materials ask for."""
    rows = [["made from", "as", "licence", "of those who use the model it asks"]]
    rows += [[escape(one.name), one.part, escape(one.licence), escape(one.terms.terms)] for one in facts.materials]
    cited = dict.fromkeys(escape(one.source.citation) for one in facts.materials if one.source)
    public = PUBLIC if facts.is_public else PRIVATE
    return "\n\n".join(["## Licences", _left(rows), public, *(f"- {one}" for one in cited)])


def composition(facts: Facts, params: Params) -> str:
    """Counts of what the corpus in force holds, and of the pairs."""
    data = facts.data
    rows = [["split", "dialogues", "turns", "words a turn"]]
    rows += [
        [split, *(f"{data.get(f'{name}_{key}', 0):,.0f}" for key in ("dialogues", "turns")),
         f"{data.get(f'{name}_words_per_turn', 0):.1f}"]
        for name, split in SPLITS.items()
    ]  # fmt: skip
    uses = "It was trained on the train split" if facts.lineage.is_adapter else "It saw none of them"
    parts = ["## Data", f"{uses}; the numbers below come from the test split.", markdown_table(rows)]
    if params.corpus.mix:
        mixed = [["train dialogues of", "number"]]
        mixed += [[escape(name), f"{data.get(f'{name}_train_dialogues', 0):,.0f}"] for name in params.corpus.mix]
        parts.append(markdown_table(mixed))
    for said, prefix in (("Train dialogues by label", "train_label_"), ("Masked in all splits", "masked_")):
        counts = {name.removeprefix(prefix): count for name, count in data.items() if name.startswith(prefix)}
        if counts:
            parts.append(f"{said}: {', '.join(f'{escape(name)} {count:,.0f}' for name, count in counts.items())}.")
    if facts.pairs:
        parts.append(table("preference pairs", facts.pairs, measured(facts.pairs, PAIR_COLUMNS)))
        if any(params.dpo.rounds[key].source == "llm" for key in facts.pairs):
            parts.append(f"Candidates of some pairs were written by `{params.llm.model}`, whose terms hold for them.")
    return "\n\n".join(parts)


def training(facts: Facts, params: Params) -> str:
    """The hyperparameters of the steps that the model went through, as `params.yaml` has them."""
    from ruamel.yaml import YAML

    trained, values = facts.lineage, asdict(params)
    shown: dict[str, Any] = {"seed": params.seed}
    if params.model.is_made:
        shown["tiny"] = values["tiny"]
    if trained.is_adapter:
        shown["lora"] = values["lora"]
    if trained.sft:
        shown["sft"] = {key: value for key, value in values["sft"].items() if key != "by_quality"}
    if trained.rounds:
        shown["pairs"] = values["pairs"]
        rounds = {key: values["dpo"]["rounds"][key] for key in trained.rounds}
        shown["dpo"] = values["dpo"] | {"rounds": rounds}
    shown["generate"] = values["generate"]
    YAML().dump(shown, text := StringIO())
    return f"## How it was made\n\nWhat it hangs on of `params.yaml`:\n\n```yaml\n{text.getvalue()}```"


def scores(facts: Facts, params: Params) -> str:
    """The metrics with their intervals, and the difference to the reference variant."""
    other = params.evaluate.reference
    rows = [["metric", "value", "95 % interval", f"less {escape(other)}", "95 % interval"]]
    for key, (heading, digits) in VARIANT_COLUMNS.items():
        if key in facts.metrics:
            bounds = [facts.intervals.get(f"{key}.{name}") for name in ("low", "high", "diff", "diff_low", "diff_high")]
            low, high, less, less_low, less_high = (DASH if one is None else f"{one:,.{digits}f}" for one in bounds)
            spans = [DASH if one == DASH else f"{one} to {two}" for one, two in ((low, high), (less_low, less_high))]
            rows.append([heading, f"{facts.metrics[key]:,.{digits}f}", spans[0], less, spans[1]])
    return f"## Results\n\n{markdown_table(rows)}\n\n{SCORES}"


def usage(facts: Facts, params: Params) -> str:
    """How the files are loaded."""
    if not facts.files:
        return "## Loading\n\nNothing was trained here: these are the weights of the base model."
    made, adapter = params.model.is_made, facts.lineage.is_adapter
    if params.model.as_decoder or (made and params.tiny.architecture == "bert"):
        return "## Loading\n\nBERT as a decoder is a class of the project: its `python -m attune.tools.chat` loads it."
    # By folders: given the repository and `subfolder="base"`, transformers finds the adapter's configuration first, and
    # looks for the base model where that was trained.
    base = 'folder + "/base"' if adapter else "folder"
    if not made:
        base = f'"{params.model.hub_id}", revision="{facts.commit}"'
    lines = [
        "from huggingface_hub import snapshot_download",
        *(["from peft import PeftModel"] if adapter else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = snapshot_download("…")  # the repository of these files',
        f"model = AutoModelForCausalLM.from_pretrained({base})",
        f"tokenizer = AutoTokenizer.from_pretrained({base})",
        *(["model = PeftModel.from_pretrained(model, folder)"] if adapter else []),
    ]
    return "\n".join(["## Loading", "", "```python", *lines, "```"])


def _left(rows: list[list[str]]) -> str:
    """A Markdown table of texts."""
    rule = ["---"] * len(rows[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))
