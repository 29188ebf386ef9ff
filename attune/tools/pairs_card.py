"""The card of a data set of preference pairs on the Hugging Face Hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from inspect import cleandoc

from attune.config.schema import Params, chain
from attune.download.licences import NOT_STATED, terms
from attune.download.licences import load as load_licences
from attune.download.sources import load as load_sources
from attune.report.card_facts import SOURCES, USE, Lineage, Material, lineage, materials, sections_of, stated_licences
from attune.report.results import pairs_file

PAIRS_FILE = "pairs.jsonl"


@dataclass(frozen=True)
class Card:
    """The text of README.md, and whether every licence permits a public data set."""

    text: str
    public: bool


def make_card(key: str, params: Params, count: int) -> Card:
    """The card of the `count` pairs of a round.

    Raises:
        UserError, DataError: a licence or the page on use cannot be read.
    """
    used = sources_of(key, params)
    licences = sorted({material.terms.hub_id for material in used})
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in metadata(params, licences).items()),
        "---",
        "",
        f"# Preference pairs of round {key}",
        "",
        f"{count} pairs in TRL's conversational format with explicit prompt: `prompt`, `chosen`, `rejected`. Made by",
        f"Attune, rule `{params.pairs.rule}`, epoch {len(chain(params.rounds, key))}, seed {params.seed}, corpus "
        f"{', '.join(params.corpus.parts)}.",
        "",
        "## Rule",
        "",
        cleandoc(import_module(f"attune.pairs.{params.pairs.rule}").__doc__ or ""),
        "",
        "## Numbers",
        "",
        *numbers(key),
        "",
        "## Licences",
        "",
        "| from | licence | terms |",
        "|---|---|---|",
        *(f"| {material.name} ({material.part}) | {material.licence} | {material.terms.terms} |" for material in used),
        "",
        sections_of(USE),
        "",
    ]
    return Card("\n".join(lines), all(material.terms.public for material in used))


def metadata(params: Params, licences: list[str]) -> dict[str, object]:
    """The metadata that the hub reads; values are valid YAML as JSON."""
    files = [{"split": "train", "path": PAIRS_FILE}]
    language = {} if params.corpus.language is None else {"language": params.corpus.language}
    return {
        "license": licences[0] if len(licences) == 1 else "other",
        **language,
        "tags": ["preference", "dpo", "trl", "empathy", params.pairs.rule],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def sources_of(key: str, params: Params) -> list[Material]:
    """What the texts of a round's pairs were taken from, each with its licence."""
    table, step = load_licences(), params.rounds[key]
    not_stated = terms(table, NOT_STATED, "pairs")
    if params.pairs.rule == "file":
        return [Material(params.pairs.file.hub_id or params.pairs.table, "pairs", NOT_STATED, not_stated)]
    source = step.source(params.llm)
    trained = lineage(params, step.candidates) if source == "policy" else Lineage("all", ())
    made_from = materials(params, trained, stated_licences(), load_sources(SOURCES), table)
    corpora = materials(params, Lineage("all", ()), stated_licences(), load_sources(SOURCES), table)
    used = [*(made_from if source == "policy" else ()), *(one for one in corpora if one.part == "dialogues")]
    if source == "llm":
        used.append(Material(params.llm.model, "replies", NOT_STATED, not_stated))
    return list(dict.fromkeys(used))


def numbers(key: str) -> list[str]:
    """The rows of a table of `metrics/pairs/<round>.json`."""
    from attune.report.results import read_metrics

    values = read_metrics(pairs_file(key))
    return ["| | |", "|---|---:|", *(f"| {name} | {value:g} |" for name, value in values.items())]
