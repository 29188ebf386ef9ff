"""Rules for the code that no linter of `make lint` checks; pyproject.toml has those of the imports."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
SOURCES = [path for name in ("attune", "stages") for path in (ROOT / name).rglob("*.py")]


def test_heavy_libraries_are_imported_inside_functions():
    """A stage that needs no model must not wait for torch, and no stage for TRL at its start."""
    heavy = {"torch", "transformers", "trl", "peft", "datasets", "pandas", "pyarrow", "matplotlib", "dvclive"}
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


# Modules that decide no number, so that no stage hangs on them (dvc.yaml says so, too).
DECIDE_NOTHING = {
    f"{name}.py"
    for name in (
        "__init__",
        "params",
        "params_checks",
        "sections",
        "files",
        "batches",
        "errors",
        "checkpoints",
        "launch",
        "machine",
        "manifest",
        "devices",
        "ranks",
    )
}


# What a stage imports and does not run: generate draws held-out pairs, which no classifier judges.
NOT_RUN = {
    "generate": {
        "attune/classifiers/common/fit.py",
        "attune/classifiers/dbt/classifier.py",
        "attune/classifiers/common/turn_classifier.py",
    }
}


def modules(path: Path) -> set[Path]:
    """The files of `stages` that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stages":
            folder = ROOT.joinpath(*node.module.split("."))
            named = (
                [folder / f"{alias.name}.py" for alias in node.names]
                if folder.is_dir()
                else [folder.with_suffix(".py")]
            )
            found |= {one for one in named if one.is_file()}
    return found


def closure(path: Path) -> set[Path]:
    """A file and all that it imports, directly or not."""
    found, waiting = set(), [path]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += [other for other in modules(one) if other.name not in DECIDE_NOTHING]
    return found


def stage_deps() -> dict[str, tuple[Path, set[Path]]]:
    """Name of a stage to the file that its command runs and the code among its deps."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    found = {}
    for name, stage in stages.items():
        own = stage.get("do", stage)
        run = ROOT.joinpath(*own["cmd"].split()[2].split(".")).with_suffix(".py")
        found[name] = (run, {ROOT / dep for dep in own["deps"] if dep.startswith("stages/")})
    return found


@pytest.mark.parametrize("name", stage_deps())
def test_a_stage_hangs_on_all_code_that_it_runs(name):
    """Else an edit of that code would leave what the stage made before as if nothing had changed."""
    run, deps = stage_deps()[name]
    missing = {one for one in closure(run) if not deps & {one, *one.parents}}
    assert {one.relative_to(ROOT).as_posix() for one in missing} == NOT_RUN.get(name, set())
