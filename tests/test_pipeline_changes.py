"""What runs again after a change, by `dvc exp run` and `dvc repro` in a clone in which the pipeline has run."""

import json
import shutil
import sys

import pyarrow.parquet as pq
import pytest
from micro import MICRO, Clone, stages_run

from attune.config.params import load
from stages import dpo as dpo_stage
from stages import generate as generate_stage
from stages import sft as sft_stage

pytestmark = pytest.mark.slow

VARIANTS = ("base", "sft-dpo")
# Pages are in Git, so that DVC has no run cache of them: they are written again wherever params.yaml is another.
PAGES = ["card@base", "card@sft-dpo", "report"]


@pytest.fixture
def clone(micro, tmp_path) -> Clone:
    return micro.clone.copy(tmp_path / "clone")


def test_change_of_beta_runs_dpo_and_what_follows_and_back_again_runs_nothing(clone):
    before = clone.read("metrics/text/sft-dpo.json")
    changed = clone.run("dvc", "exp", "run", *(f"-S{one}" for one in MICRO), "-S", "dpo.beta=5")
    # `evaluate@sft-dpo` and `scores@sft-dpo-epitome` follow only where a reply or a log-probability changed, which
    # beta = 5 ensures; intervals only where a score changed, too.
    run = [stage for stage in stages_run(changed) if not stage.startswith("intervals@sft-dpo")]
    scored = ["evaluate@sft-dpo", "scores@sft-dpo-epitome", "mmlu@sft-dpo"]
    models = ["dpo@e1", "dpo@e2", "generate@sft-dpo", *scored]
    assert sorted(run) == sorted([*models, *PAGES])
    assert "preference_accuracy" in clone.run("dvc", "metrics", "diff", "--all", "--md", "HEAD")
    compared = clone.run(sys.executable, "-m", "attune", "compare", "--all", "--md")
    assert "dpo.beta: 0.1 → 5" in compared and "Verdict" in compared
    back = clone.run("dvc", "exp", "run", *(f"-S{one}" for one in MICRO))
    # Every model, reply and metric is restored.
    assert sorted(stages_run(back)) == PAGES
    assert clone.read("metrics/text/sft-dpo.json") == before


def test_a_further_round_runs_only_itself_and_another_reference_only_the_intervals(clone):
    """The schedule spans three epochs and two rounds have run: the third depends on the second and on nothing new."""
    three = [*(one for one in MICRO if one != "~rounds.e3"), "evaluate.reference=sft-dpo"]
    output = clone.run("dvc", "exp", "run", *(f"-S{one}" for one in three))
    intervals = [f"intervals@{variant}-{scorer}" for variant in VARIANTS for scorer in ("text", "epitome", "mmlu")]
    assert sorted(stages_run(output)) == sorted(["pairs@e3", "audit", "dpo@e3", *intervals, *PAGES])
    assert "rouge_l.diff" in json.loads(clone.read("metrics/intervals/text/base.json"))


def test_replies_made_elsewhere_are_a_variant_and_a_changed_row_runs_what_reads_it(clone):
    rows = pq.read_table(clone.folder / "data/replies/base.parquet").to_pylist()
    file = clone.folder / "my_data/theirs.jsonl"
    file.write_text("".join(json.dumps({"id": row["id"], "reply": "Oh no!"}) + "\n" for row in rows))
    added = [*MICRO, "+variants.theirs={model: my_data/theirs.jsonl, instruction: data/dialogues}"]
    output = clone.run("dvc", "exp", "run", *(f"-S{one}" for one in added))
    intervals = {f"intervals@theirs-{scorer}" for scorer in ("text", "epitome", "mmlu")}
    reading = ["generate@theirs", "mmlu@theirs", "card@theirs", "evaluate@theirs", "scores@theirs-epitome", *intervals]
    assert sorted(stages_run(output)) == sorted([*reading, *PAGES])
    assert json.loads(clone.read("metrics/text/theirs.json"))["repeated_share"] == 100.0
    assert "32 of the 32 examples" in clone.read("reports/cards/theirs.md")
    assert "theirs" in clone.run(sys.executable, "-m", "attune", "show")
    file.write_text(file.read_text().replace("Oh no!", "You won!", 1))
    changed = set(stages_run(clone.run("dvc", "repro")))
    # Intervals follow only where a score changed, too.
    assert {*reading, *PAGES} - intervals <= changed <= {*reading, *PAGES}
    # DVC reads metrics that hold nothing, those of MMLU.
    assert "metrics/text/theirs.json" in clone.run("dvc", "metrics", "show")


def test_a_model_of_a_folder_is_trained_and_generates_as_the_one_that_was_made(clone, tmp_path, monkeypatch):
    """The same weights from a folder beside the project: every adapter to the bit, and every reply."""
    shutil.copytree(clone.folder / "models/base", tmp_path / "mine", ignore=shutil.ignore_patterns("base.json"))
    monkeypatch.chdir(clone.folder)
    names = ("models/sft", "models/dpo/e1", "models/dpo/e2")
    adapters = [(clone.folder / name / "adapter_model.safetensors").read_bytes() for name in names]
    replies = pq.read_table("data/replies/sft-dpo.parquet", columns=["reply", "reference_logp"])
    clone.run(sys.executable, "-m", "attune", "params", *MICRO, "model.source=folder", "model.folder=../mine")
    assert "Running stage 'base'" in clone.run("dvc", "repro", "--single-item", "base")
    assert [path.name for path in (clone.folder / "models/base").iterdir()] == ["base.json"]
    for name in names:
        shutil.rmtree(name)
    params = load()
    sft_stage.main("sft", params)
    for key in params.rounds:
        dpo_stage.main(key, params)
    generate_stage.main("sft-dpo", params)
    assert [(clone.folder / name / "adapter_model.safetensors").read_bytes() for name in names] == adapters
    assert pq.read_table("data/replies/sft-dpo.parquet", columns=["reply", "reference_logp"]) == replies
