"""Recipe dbt from its first stage to its last with a very small model of each architecture, on the embedded sample."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.params import compose
from stages.record import stages_in_order

ROOT = Path(__file__).parents[1]
MICRO = [
    "recipe=dbt", "corpus=esconv_sample", "tiny.corpus=sample",
    "tiny.vocab_size=600", "tiny.hidden_size=32", "tiny.intermediate_size=64", "tiny.layers=2", "tiny.heads=2",
    "tiny.epochs=0.2", "tiny.max_length=128", "lora.r=4", "sft.max_length=256", "sft.batch_size=16", "dbt.epochs=1",
    "dbt.max_length=48", "pairs.limit=12", "pairs.margin=0.0", "pairs.max_new_tokens=8", "dpo.batch_size=8",
    "generate.limit=8", "generate.max_new_tokens=8", "generate.do_sample=true", "epitome.epochs=1",
    "epitome.max_length=16", "mmlu.corpus=sample", "mmlu.limit=2", "mmlu.shots=1", "evaluate.resamples=100",
    "hardware.threads=1", "hardware.dtype=fp32",
]  # fmt: skip
# What no model of the study has a part in.
COMMON = ("download", "prepare", "epitome", "references", "dbt@dbt", "dbt_references@dbt")
VARIANTS = ("base", "sft", "dpo", "sft-dpo")


def run(stages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of `stages` in this process, which spares the imports of fifty."""
    with Repo() as repo:
        commands = {stage.addressing: stage.cmd for stage in repo.index.stages}
    for stage in stages:
        _, _, module, *arguments = commands[stage].split()
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__")


@pytest.fixture(scope="module")
def common(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dbt")
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copytree(ROOT / "conf", folder / "conf")
    for name in ("sample", "prompts"):
        shutil.copytree(ROOT / "data" / name, folder / "data" / name)
    for table in (ROOT / "data").glob("*.[cy]*[vl]"):
        shutil.copy(table, folder / "data")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        compose([*MICRO, "model=tiny"])
        run(list(COMMON), patch)
    return folder


@pytest.mark.parametrize("model", ["tiny", "tiny-mistral", "tiny-gemma"])
def test_recipe_runs_to_its_table_with_every_architecture(model, common, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(common, folder)
    monkeypatch.chdir(folder)
    compose([*MICRO, f"model={model}"])
    run([stage for stage in stages_in_order() if stage not in COMMON], monkeypatch)
    config = json.loads(Path("models/base/config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == {"tiny": "llama"}.get(model, model.removeprefix("tiny-"))
    for variant in VARIANTS:
        for name in (f"{variant}", f"dbt/{variant}", f"intervals/dbt/{variant}", f"mmlu/{variant}"):
            assert json.loads(Path(f"metrics/{name}.json").read_text(encoding="utf-8"))
    adapters = ("sft", "dpo/e1", "dpo/e2", "dpo/e3", "dpo/base-e1", "dpo/base-e2", "dpo/base-e3")
    weights = {(Path("models") / name / "adapter_model.safetensors").read_bytes() for name in adapters}
    assert len(weights) == len(adapters)
    assert "sft-dpo" in Path("reports/summary.md").read_text(encoding="utf-8")
