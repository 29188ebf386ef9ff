"""Two ranks over gloo give the results of a single process, and resume after a kill."""

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import small
from faults.pipeline import Run, start, steps_seen
from helpers import ROOT, random_classifiers
from ranks_run import run_stages
from safetensors.torch import load_file

from attune.classifiers.epitome.model import MECHANISMS
from attune.config.params import compose, load
from attune.data.dialogue import write_dialogues
from attune.data.examples import read_examples
from attune.data.pair import Pair
from attune.pairs.metrics import write_pairs
from attune.runtime.sealed import newest_whole

pytestmark = pytest.mark.slow

# Five steps per epoch. The last step has five pairs or dialogues: micro-batches of 2, 2 and 1 in a single process, and
# on two ranks of 2 and 1, and of 2 and 0.
EXAMPLES = 37
OVERRIDES = [
    *small.OVERRIDES, "sft.epochs=3", "sft.batch_size=8", "dpo.batch_size=8", "dpo.max_length=64", "lora.dropout=0",
    "sft.learning_rate=1e-3", "dpo.learning_rate=1e-3", "runtime.save_every=5", "~rounds.e3",
    "variants.sft-dpo.model=models/dpo/e2", "generate.max_length=64", "generate.max_new_tokens=8",
    "decoding.batch_tokens=256", "mmlu.shots=1", "mmlu.limit=4", "mmlu.batch_size=2",
]  # fmt: skip
SFT_STEPS = 15
STAGES = ["sft@sft", "dpo@e1", "dpo@e2", "generate@sft-dpo", "sample@sft", "evaluate@sft-dpo", "scores@sft-dpo",
          "mmlu@sft-dpo"]  # fmt: skip
RELATIVE = 1e-5
# Of a reward: beta times the difference of two log-probabilities in fp32, of tens of nats each.
ROUNDING = 1e-6
METRICS = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


def make(folder: Path) -> Path:
    small.make(folder, EXAMPLES, OVERRIDES)
    for epoch in (1, 2):
        pairs = [a_pair(number, epoch) for number in range(EXAMPLES)]
        write_pairs(pairs, folder / f"data/pairs/e{epoch}.parquet")
        held_out = [a_pair(number, 0) for number in range(EXAMPLES, EXAMPLES + 5)]
        write_pairs(held_out, folder / f"data/pairs/e{epoch}.valid.parquet")
    test = [replace(small.dialogue(number), split="test", label=("sad", "joyful")[number % 2]) for number in range(9)]
    write_dialogues(test, folder / "data/dialogues/test.parquet")
    shutil.copytree(ROOT / "data/sample/mmlu", folder / "data/sample/mmlu")
    for table in ("opposite_emotions.csv", "miti_adherence.csv"):
        shutil.copy(ROOT / "data" / table, folder / "data")
    random_classifiers(folder / "models/epitome")
    names = [
        example.id
        for example in read_examples(folder / "data/dialogues/test.parquet", load(folder / "params.yaml").context)
    ]
    levels = {f"level_{key}": [number % 3 for number in range(len(names))] for key in MECHANISMS.values()}
    (folder / "data/references").mkdir()
    pd.DataFrame({"id": names, **levels}).to_parquet(folder / "data/references/epitome.parquet")
    return folder


def a_pair(number: int, epoch: int) -> Pair:
    dialogue = small.dialogue(number)
    return Pair(
        dialogue.id,
        epoch,
        dialogue.turns[:3],
        dialogue.turns[3].text,
        # Of no pair the same as chosen: its margin would be rounding, and so would be the sign of it.
        small.text(1003 * epoch + number),
        "sad",
        "joyful",
        "x",
    )


def launched(folder: Path, log: str, *stages: str) -> Run:
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return start(folder, folder / f"{log}.txt", sys.executable, "-m", "ranks_run", *stages, env=env)


def rank_of(launcher: int, number: int) -> int:
    """The process id of a rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={number}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no rank {number}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path, str]:
    """A project run in a single process, one run on two ranks after a rank was killed, and the log of the kill."""
    one = make(tmp_path_factory.mktemp("one"))
    two = tmp_path_factory.mktemp("two")
    shutil.copytree(one, two, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(two)
        compose([*OVERRIDES, "ranks.processes=2"])
        killed = launched(two, "killed", "sft@sft")
        assert killed.wait_until(lambda: steps_seen(killed.output) >= 7), killed.output
        os.kill(rank_of(killed.process.pid, 1), signal.SIGKILL)
        assert killed.process.wait() == 1, killed.output
        patch.chdir(one)
        run_stages(STAGES, load())
    assert not (two / "models/sft").exists()
    run = launched(two, "two", *STAGES)
    assert run.process.wait() == 0, run.output
    return one, two, killed.output


def test_killed_rank_ends_the_stage_with_its_log(folders):
    *_, output = folders
    log, last = re.findall(
        r"error: rank 1 of 2 was killed by SIGKILL; (.*stderr.log) ends with\n((?:  .*\n)+)", output
    )[0]
    assert (
        "dialogue/s]" in last
        and "Traceback" not in output
        and output.endswith("\nthe other ranks were stopped; the same command continues from the last checkpoint\n")
    )
    assert not Path(log).exists(), "the run that went on ended well"


def test_stage_resumes_from_its_checkpoint(folders):
    _, two, _ = folders
    output = (two / "two.txt").read_text()
    assert re.search(r"resuming from \S+/sft-sft-\w+/checkpoint-(5|10)\n", output)
    assert "checkpoint-" in output and "rank" not in output


def test_no_thread_of_the_group_is_left(folders):
    _, two, _ = folders
    # Of rank 0 and of the launcher; the log of rank 1 is gone.
    assert re.findall("threads of the group: (.*)", (two / "two.txt").read_text()) == ["0", "0"]


@pytest.mark.parametrize("name", ["sft", "dpo/e1", "dpo/e2"])
def test_same_adapter(folders, name):
    one, two = (load_file(folder / "models" / name / "adapter_model.safetensors") for folder in folders[:2])
    assert one.keys() == two.keys()
    for key, weights in one.items():
        assert (weights - two[key]).norm() <= 10 * RELATIVE * weights.norm(), key


@pytest.mark.parametrize("stage", ["sft-sft", "dpo-e1", "dpo-e2"])
def test_same_training_metrics(folders, stage):
    one, two = (history(folder, stage) for folder in folders[:2])
    assert_same_metrics(one, two, RELATIVE)


def assert_same_metrics(one: list[dict[str, float]], two: list[dict[str, float]], relative: float) -> None:
    assert len(one) >= 2 and len(one) == len(two)
    for log, other in zip(one, two, strict=True):
        if log["step"] == 1 and "rewards/margins" in log:
            # The policy still is the reference model: margins are rounding, and accuracy counts their signs.
            assert [abs(logged["rewards/margins"]) < ROUNDING for logged in (log, other)] == [True, True]
            log, other = ({**logged, "rewards/accuracies": 0.0} for logged in (log, other))
        assert log == pytest.approx(other, rel=relative, abs=ROUNDING)


def history(folder: Path, stage: str) -> list[dict[str, float]]:
    (kept,) = (folder / ".checkpoints").glob(f"{stage}-*/")
    state = json.loads((newest_whole(kept, "checkpoint") / "trainer_state.json").read_text())
    return [{name: log[name] for name in ("step", *METRICS) if name in log} for log in state["log_history"]]


@pytest.mark.parametrize("stage", ["sft", "dpo/e1", "dpo/e2"])
def test_same_curves(folders, stage):
    one, two = (sorted((folder / "reports/curves" / stage).rglob("*.tsv")) for folder in folders[:2])
    assert [path.name for path in one] == [path.name for path in two] and len(one) > 2
    for path, other in zip(one, two, strict=True):
        assert pd.read_csv(path, sep="\t")["step"].tolist() == pd.read_csv(other, sep="\t")["step"].tolist()


@pytest.mark.parametrize("variant", ["sft-dpo", "sft"], ids=["greedy", "drawn"])
def test_same_replies(folders, variant):
    one, two = (pd.read_parquet(folder / f"data/replies/{variant}.parquet") for folder in folders[:2])
    logps = ["reference_logp", "rejected_logp"]
    assert one.drop(columns=[*logps, "context"]).equals(two.drop(columns=[*logps, "context"]))
    assert one["reply"].nunique() > 2
    for name in logps:
        assert one[name].tolist() == pytest.approx(two[name].tolist(), rel=10 * RELATIVE)


@pytest.mark.parametrize("scorer", ["text", "epitome"])
def test_same_scores(folders, scorer):
    one, two = (pd.read_parquet(folder / f"data/scores/{scorer}/sft-dpo.parquet") for folder in folders[:2])
    assert one["id"].tolist() == two["id"].tolist()
    for name in one.columns.drop(["id", "label"]):
        assert one[name].tolist() == pytest.approx(two[name].tolist(), rel=RELATIVE, nan_ok=True), name


@pytest.mark.parametrize("name", ["text/sft-dpo", "epitome/sft-dpo", "mmlu/sft-dpo"])
def test_same_metrics_and_signature(folders, name):
    one, two = (json.loads((folder / f"metrics/{name}.json").read_text()) for folder in folders[:2])
    assert one == pytest.approx(two, rel=RELATIVE, abs=1e-4) and len(one) > 3
    one, two = (json.loads((folder / f"metrics/{name}.signature.json").read_text()) for folder in folders[:2])
    assert one == two


def test_same_files(folders):
    """The same files, except the random state of each rank, and no partial file."""
    one, two = (
        {
            str(path.relative_to(folder))
            for name in ("models", "data", "metrics", "reports")
            for path in (folder / name).rglob("*")
        }
        for folder in folders[:2]
    )
    assert {name for name in one ^ two if "rng_state" not in name} == set()
