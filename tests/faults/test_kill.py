"""The pipeline killed at random points, again and again, ends with the bytes of an undisturbed run."""

import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from micro import MICRO, Undisturbed
from pipeline import Run, make, repro, results, steps_seen

from attune.runtime.sealed import newest_whole, step_of

SEED = 20260101
# With --record, and without.
KILLS, FEW_KILLS = 52, 3
SAVE_EVERY = 5
TRAINED = {"base": "base", "sft@sft": "sft-sft", "dpo@e1": "dpo-e1", "dpo@e2": "dpo-e2"}
# Without --record the run ends after the last stage that trains, before those that read replies.
TRAINING = ["download", "prepare", "base", "sft@sft", "pairs@e1", "pairs@e2", "dpo@e1", "dpo@e2"]
# A kill of these stages comes three times as often: they have more to lose.
WEIGHT = 3
# The longest pause after a file has appeared, in seconds: a checkpoint is written in less.
WRITING = 0.03
# The same after the last step of a stage, which then writes its out, ends, and has it hashed by DVC.
ENDING = 1.0
MOMENTS = ("any", "step", "writing", "ending")


@dataclass(frozen=True)
class Kill:
    """One kill: the intended stage, the stage that was killed, and the moment in it."""

    aimed: str
    hit: str
    moment: str


def wait_for(run: Run, stage: str, moment: str, micro: Undisturbed, rng: random.Random) -> None:
    """Wait until `stage`, or a later one, is at the moment of the kill."""
    reached = micro.order[micro.order.index(stage) :]
    if not run.wait_until(lambda: run.stage() in reached):
        return
    begin, pause = time.monotonic(), rng.random() * micro.seconds(stage)
    step = rng.randrange(1, 30)
    kept = Path(run.log.parent / "project/.checkpoints")
    before = set(kept.rglob("*"))
    match moment:
        case "any":
            run.wait_until(lambda: time.monotonic() - begin > pause)
        case "step":
            run.wait_until(lambda: steps_seen(run.output) >= step or run.stage() != stage)
        case "writing":
            # The next checkpoint's folder appears, or a file in it.
            run.wait_until(lambda: set(kept.rglob("checkpoint-*")) - before or run.stage() != stage)
            begin, pause = time.monotonic(), rng.random() * WRITING
            run.wait_until(lambda: time.monotonic() - begin > pause)
        case "ending":
            run.wait_until(lambda: steps_seen(run.output) >= micro.steps[stage] or run.stage() != stage)
            begin, pause = time.monotonic(), rng.random() * ENDING
            run.wait_until(lambda: time.monotonic() - begin > pause)


def lost_steps(project: Path, stage: str, output: str) -> int:
    """Steps of a killed stage after its newest complete checkpoint."""
    folders = list((project / ".checkpoints").glob(f"{TRAINED[stage]}-*/"))
    kept = [step_of(whole) for folder in folders if (whole := newest_whole(folder, "checkpoint"))]
    return steps_seen(output) - max(kept, default=first_step(project, stage))


def first_step(project: Path, stage: str) -> int:
    """The steps that a stage finds done: the second round counts on from the first one's."""
    if stage != "dpo@e2":
        return 0
    return json.loads((project / "models/dpo/e1/trainer_state.json").read_text(encoding="utf-8"))["global_step"]


def schedule(order: list[str], kills: int, rng: random.Random) -> list[tuple[str, str]]:
    """Stage and moment of each kill, in the order of the stages; every stage has its part."""
    pool = [stage for stage in order for _ in range(WEIGHT if stage in TRAINED else 1)]
    drawn = [pool[i % len(pool)] for i in range(kills)] if kills >= len(pool) else rng.sample(pool, kills)
    return [(stage, rng.choice(MOMENTS) if stage in TRAINED else "any") for stage in sorted(drawn, key=order.index)]


@pytest.mark.slow
def test_a_killed_pipeline_ends_like_an_undisturbed_one(micro, tmp_path, recorded, request):
    whole = request.config.getoption("--record")
    kills, order = (KILLS, micro.order) if whole else (FEW_KILLS, [one for one in micro.order if one in TRAINING])
    targets = [] if whole else TRAINING[-1:]
    rng = random.Random(SEED)
    project = tmp_path / "project"
    project.mkdir()
    make(project, MICRO)
    killed: list[Kill] = []
    lost: list[int] = []
    ended = 0
    for number, (stage, moment) in enumerate(schedule(order, kills, rng)):
        run = repro(project, tmp_path / f"{number}.txt", *targets)
        wait_for(run, stage, moment, micro, rng)
        hit = run.stage()
        if not run.kill():
            assert run.process.returncode == 0, run.output[-4000:]
            ended += 1
            continue
        killed.append(Kill(stage, hit, moment))
        if hit in TRAINED:
            lost.append(lost_steps(project, hit, run.output))
            assert lost[-1] <= SAVE_EVERY, f"{killed[-1]}: {lost[-1]} steps are lost\n{run.output[-2000:]}"
    last = repro(project, tmp_path / "last.txt", *targets)
    assert last.process.wait() == 0, last.output[-4000:]
    expected, found = (results(folder, order) for folder in (micro.clone.folder, project))
    different = [name for name, content in expected.items() if found.get(name) != content]
    assert not different and found.keys() == expected.keys() and "models/dpo/e2/adapter_model.safetensors" in found
    # A busy machine may be late for a kill in the last stages.
    assert ended <= max(2, 0.1 * kills)
    keep(recorded, killed, lost, order)
    shutil.rmtree(project)


def keep(recorded, killed: list[Kill], lost: list[int], order: list[str]) -> None:
    rows = [
        {"what": f"killed in {stage}", "cases": sum(kill.hit == stage for kill in killed), "failures": 0}
        for stage in ["before the first stage", *order]
    ]
    rows.append({"what": "most steps lost", "cases": len(lost), "failures": 0, "steps": max(lost, default=0)})
    recorded("kill", [row for row in rows if row["cases"]])
