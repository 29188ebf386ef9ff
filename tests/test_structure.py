"""Rules for the code that no linter of `make lint` checks; pyproject.toml has those of the imports."""

import ast
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
SOURCES = [path for name in ("attune", "stages") for path in (ROOT / name).rglob("*.py")]


def test_heavy_libraries_are_imported_inside_functions():
    """A stage that needs no model must not wait for torch, and no stage for TRL at its start."""
    heavy = {"torch", "transformers", "trl", "peft", "datasets", "pandas", "pyarrow", "altair", "dvclive"}
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {name.split(".")[0] for name in names}, f"{path}:{node.lineno}"


def test_no_pickle_and_no_remote_code():
    for path in [*SOURCES, *(ROOT / "benchmarks").rglob("*.py")]:
        source = path.read_text(encoding="utf-8")
        assert "pickle.load" not in source and "trust_remote_code=True" not in source, path
        assert unsafe_loads(source) == [], path


def unsafe_loads(source: str) -> list[int]:
    """Lines that take `load` from torch, or call `torch.load` without a literal `weights_only=True`."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.serialization"):
            lines += [node.lineno for alias in node.names if alias.name in ("load", "serialization")]
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.serialization.load"):
            lines.append(node.lineno)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = [k for k in node.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
            lines += [-node.func.lineno] if safe else []
    return sorted(line for line in lines if line > 0 and -line not in lines)


@pytest.mark.parametrize(
    ("source", "unsafe"),
    [
        ("torch.load(path, weights_only=True)", False),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=safe)", True),
        ("read = torch.load", True),
        ("from torch import load", True),
        ("torch.serialization.load(path)", True),
    ],
)
def test_the_rule_on_loads_sees_what_is_unsafe(source, unsafe):
    assert bool(unsafe_loads(source)) is unsafe


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
