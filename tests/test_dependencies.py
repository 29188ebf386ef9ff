"""Which stages an edit re-runs: a byte is changed in every folder of the library, and `dvc status` lists the stages."""

import ast
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from helpers import ROOT
from ruamel.yaml import YAML

TRAIN = {"base", "sft", "dpo"}
SAMPLE = {"pairs", "generate"}
CLASSIFY = {"classifier", "references", "scores"}
# Folder of attune/ to the stages of the default pipeline that depend on it. What is not here decides no number.
TABLE = {
    "classifiers/common": CLASSIFY | {"audit", "pairs"},
    "classifiers/dbt": {"pairs"},
    "classifiers/epitome": CLASSIFY | {"audit", "pairs"},
    "compute": TRAIN | SAMPLE | CLASSIFY | {"audit", "evaluate", "mmlu"},
    "corpora": {"prepare", "base", "audit", "classifier"},
    "cpu": TRAIN | SAMPLE,
    "data": TRAIN | SAMPLE | CLASSIFY | {"prepare", "audit", "evaluate", "intervals", "mmlu", "report"},
    "download": {"download", "card"},
    "generation": SAMPLE,
    "labels": SAMPLE | {"classifier", "prepare"},
    "models": TRAIN | SAMPLE | {"mmlu"},
    "models/encoder.py": TRAIN | SAMPLE | {"audit", "classifier", "evaluate", "mmlu"},
    "models/weights.py": TRAIN | SAMPLE | {"classifier", "evaluate", "mmlu"},
    "pairs": SAMPLE,
    "report": {"card", "report"},
    "scoring/common": {"evaluate", "scores"},
    "scoring/intervals": {"intervals", "report"},
    "scoring/mmlu": {"mmlu"},
    # The default run probes no variant.
    "scoring/safety": {"card", "report"},
    "scoring/text": {"evaluate", "card", "report"},
    "training/common": TRAIN,
    "training/dpo": {"dpo"},
    "training/pretraining": {"base"},
    "training/sft": {"sft"},
}
FREE = {"config", "runtime", "tools"}
# Imported by a stage's code and never run by it: generate draws held-out pairs, which no classifier ranks.
NOT_RUN = {"generate": {"classifiers/common", "classifiers/dbt", "classifiers/epitome"}}


def folders() -> set[str]:
    """The folders of attune/ that hold modules."""
    return {path.parent.relative_to(ROOT / "attune").as_posix() for path in (ROOT / "attune").rglob("*.py")} - {"."}


def room(folder: str) -> str:
    """The row of the table that a folder belongs to: its own or that of a folder above it."""
    return next((name for name in (folder, *map(str, Path(folder).parents)) if name in TABLE or name in FREE), "")


def test_every_folder_is_in_the_table():
    # A package with only an __init__ has no code. The default recipe has no classifier of behaviours and probes no
    # or judges no variant, and only a command runs scoring/validity.py.
    holds_code = {name for name in folders() if len(list((ROOT / "attune" / name).glob("*.py"))) > 1}
    assert {name for name in holds_code if not room(name)} == {
        "classifiers/behaviour",
        "scoring",
        "scoring/converse",
        "scoring/judge",
        "scoring/truth",
    }


def changed_stages(folder: Path) -> dict[str, set[str]]:
    """What `dvc status` calls a modified dependency of which stage."""
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        status = repo.status()
    stages = defaultdict(set)
    for stage, changes in status.items():
        for change in changes:
            modified = change.get("changed deps", {}) if isinstance(change, dict) else {}
            for path, kind in modified.items():
                if kind == "modified":
                    stages[path].add(stage.rpartition(":")[2].partition("@")[0])
    return stages


def test_an_edit_re_runs_the_stages_of_the_table(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files", "attune", "stages", "data", "docs/use.md", "dvc.yaml", "dvc.lock", "params.yaml"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    for folder in folders():
        (tmp_path / "attune" / folder / "__init__.py").write_text("# another byte\n", encoding="utf-8")
    for file in ("encoder", "weights"):
        (tmp_path / f"attune/models/{file}.py").write_text("# another byte\n", encoding="utf-8")
    changed = changed_stages(tmp_path)
    rerun = {path.removeprefix("attune/"): stages for path, stages in changed.items() if path.startswith("attune/")}
    # What depends on the folder depends on the file in it.
    for file in ("models/encoder.py", "models/weights.py"):
        rerun[file] |= rerun["models"]
    assert rerun == TABLE


def imported(path: Path) -> set[Path]:
    """The modules of the library that a module imports, wherever it does, except for types."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "attune":
            base = ROOT.joinpath(*node.module.split("."))
            names = [base / f"{alias.name}.py" for alias in node.names] + [
                base.with_suffix(".py"),
                base / "__init__.py",
            ]
            modules |= {name for name in names if name.is_file()}
    return modules


def closure(path: Path) -> set[Path]:
    """All modules of the library that a script runs, directly or not; what decides no number ends the search."""
    seen, waiting = set(), [path]
    while waiting:
        for module in imported(waiting.pop()):
            if module not in seen and module.relative_to(ROOT / "attune").parts[0] not in FREE:
                seen.add(module)
                waiting.append(module)
    return seen


def scripts() -> dict[str, list[str]]:
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage)["deps"] for name, stage in stages.items()}


@pytest.mark.parametrize("name", scripts())
def test_a_stage_depends_on_all_code_that_it_runs(name):
    """Otherwise the outs of a stage would stay after an edit of that code."""
    deps = [ROOT / dep.split("/$")[0] for dep in scripts()[name] if dep.startswith("attune/")]
    deps += [ROOT / "attune" / folder for folder in NOT_RUN.get(name, ())]
    missing = [
        path for path in closure(ROOT / f"stages/{name}.py") if not any(dep in (path, *path.parents) for dep in deps)
    ]
    assert [path.relative_to(ROOT).as_posix() for path in missing] == []
