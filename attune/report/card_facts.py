"""What a model card says of a variant: lineage, materials with their licences, metrics, and the files it describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from attune.config.params import named
from attune.config.schema import BASE, ROUNDS, Params, chain
from attune.download.licences import NOT_STATED, Licence, terms
from attune.download.licences import load as load_licences
from attune.download.sources import Source
from attune.download.sources import load as load_sources
from attune.report.results import data_file, labels_file, pairs_file, read_metrics, read_variant
from attune.report.tables import Metrics
from attune.runtime.errors import UserError
from attune.runtime.io import sha256_of

CARDS = Path("reports/cards")
MANIFEST = Path("data/manifest.json")
SOURCES = Path("data/sources.yaml")
USE = Path("docs/use.md")
SAMPLE_LICENCE = Path("data/sample/empatheticdialogues/LICENCE")
EMBEDDED = "the embedded sample"
METADATA = "attune"
"""The key of the project in a card's metadata: `variant`, `public`, and the sha256 of the `files`."""
# The files of a model's folder that may be published: weights that run no code, configurations, tokenizer.
PUBLISHED = (
    "*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json", "generation_config.json",
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True)
class Material:
    """What a model was made from: a corpus or published weights, with its licence."""

    name: str
    part: str
    licence: str
    terms: Licence
    source: Source | None = None


@dataclass(frozen=True)
class Lineage:
    """How a variant was trained: SFT on the dialogues of which quality (None: no SFT), and its rounds of DPO."""

    sft: str | None
    rounds: tuple[str, ...]

    @property
    def is_adapter(self) -> bool:
        """Whether the variant has an adapter on the base model."""
        return self.sft is not None or bool(self.rounds)


@dataclass(frozen=True)
class Facts:
    """What the card of a variant shows; `files` maps names on the hub to sha256."""

    variant: str
    lineage: Lineage
    materials: tuple[Material, ...]
    metrics: Metrics
    intervals: Metrics
    data: Metrics
    pairs: dict[str, Metrics]
    files: dict[str, str]
    commit: str | None
    instruction: str | None
    use: str

    @property
    def is_public(self) -> bool:
        """Whether every licence permits a public model."""
        return all(material.terms.public for material in self.materials)


def lineage(params: Params, model: str) -> Lineage:
    """How the model in the folder `model` was trained.

    Raises:
        UserError: no stage writes that folder.
    """
    by_sft = {BASE: None} | {f"models/{name}": str(adapter.quality) for name, adapter in params.adapters.items()}
    path, rounds = Path(model), params.rounds
    if path.parent == ROUNDS and path.name in rounds:
        keys = chain(rounds, path.name)
        return Lineage(by_sft.get(rounds[keys[0]].init), tuple(keys))
    if model not in by_sft:
        raise UserError(f"{model}: no stage trains a model there; the folders are {', '.join(by_sft)} and {ROUNDS}/…")
    return Lineage(by_sft[model], ())


def materials(
    params: Params,
    trained: Lineage,
    stated: Mapping[str, str],
    sources: Mapping[str, Source],
    table: Mapping[str, Licence],
) -> tuple[Material, ...]:
    """What a variant was made from: published weights, what the base model was pretrained on, and the dialogues.

    Args:
        params: of the run.
        trained: how the variant was trained; the base model alone saw no dialogues.
        stated: corpus to the licence of its files, of `stated_licences`.
        sources: `data/sources.yaml`; its entry of a corpus is used if the licence is the same.
        table: `data/licences.yaml`.

    Raises:
        UserError: a corpus is not in the manifest.
        DataError: a licence is not in the table.
    """
    used = []
    if params.model.source != "made":
        licence = params.model.licence or NOT_STATED
        used.append(
            Material(params.model.origin, "weights", licence, terms(table, licence, f"model {params.model.name}"))
        )
    corpora = [(EMBEDDED if params.tiny.corpus == "sample" else params.tiny.corpus, "pretraining")]
    corpora = corpora if params.model.is_made else []
    if trained.is_adapter:
        corpora += [(name, "dialogues") for name in params.corpus.parts]
    for name, part in corpora:
        if name not in stated:
            raise UserError(f"{MANIFEST} has no corpus {name}: run `dvc repro download`")
        source = sources.get(name)
        known = source if source and source.licence == stated[name] else None
        used.append(Material(name, part, stated[name], terms(table, stated[name], f"corpus {name}"), known))
    return tuple(used)


def stated_licences() -> dict[str, str]:
    """Corpus to its licence in `data/manifest.json`; the embedded sample has the key `EMBEDDED`.

    Raises:
        UserError: the manifest is missing or invalid.
    """
    try:
        entries = json.loads(MANIFEST.read_text(encoding="utf-8"))
        licences = {str(entry["corpus"]): str(entry["licence"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{MANIFEST} cannot be read ({error!r}): run `dvc repro download`") from None
    return licences | {EMBEDDED: SAMPLE_LICENCE.read_text(encoding="utf-8").split("\n")[0].strip()}


def published(model: Path) -> dict[str, Path]:
    """The files of a variant that may be published, by their names on the hub.

    An adapter is at the top and the base model, if the pipeline made it, in `base/`. Subfolders are left out: there
    rounds of DPO keep the state that training resumes from.
    """
    base = Path(BASE)
    below = {} if model == base else {f"base/{name}": path for name, path in _allowed(base).items()}
    return dict(sorted((_allowed(model) | below).items()))


def _allowed(folder: Path) -> dict[str, Path]:
    files = (path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else ()
    return {path.name: path for path in files if any(fnmatch(path.name, pattern) for pattern in PUBLISHED)}


def hashes(model: Path) -> dict[str, str]:
    """The sha256 of each of the files of `published`."""
    return {name: sha256_of(path) for name, path in published(model).items()}


def gather(variant: str, params: Params) -> Facts:
    """Read what the card of a variant shows.

    Raises:
        UserError: metrics are missing.
        UserError, DataError: as `lineage` and `materials`.
    """
    settings = named(params.variants, variant, "variants")
    trained = lineage(params, settings.model)
    metrics, intervals = read_variant(params, variant)
    record, instruction = Path(BASE, "base.json"), settings.instruction_file
    return Facts(
        variant=variant,
        lineage=trained,
        materials=materials(params, trained, stated_licences(), load_sources(SOURCES), load_licences()),
        metrics=metrics,
        intervals=intervals,
        data=read_metrics(data_file()) | read_metrics(labels_file()),
        pairs={key: read_metrics(pairs_file(key)) for key in trained.rounds},
        files=hashes(Path(settings.model)),
        commit=json.loads(record.read_text(encoding="utf-8")).get("commit") if record.is_file() else None,
        instruction=instruction.read_text(encoding="utf-8").strip() if instruction else None,
        use=sections_of(USE),
    )


def sections_of(path: Path) -> str:
    """The text of a page from its first section on, without title and introduction.

    Raises:
        UserError: it is missing or has no section.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if "\n## " not in text:
        raise UserError(f"{path}, which every card quotes, is missing or has no section: restore it from Git")
    return text[text.index("\n## ") + 1 :].strip()
