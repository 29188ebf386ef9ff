"""The stages that run on several ranks, one after another in the same processes: `python -m ranks_run sft@sft`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attune.config.params import load
from attune.config.schema import Params
from attune.runtime.errors import reported
from attune.runtime.launch import run
from stages import dpo, evaluate, generate, mmlu, scores, sft


def sample(variant: str, params: Params) -> None:
    generate.main(variant, replace(params, generate=replace(params.generate, do_sample=True)))


def epitome(variant: str, params: Params) -> None:
    scores.main(variant, "epitome", params)


MAIN = {"sft": sft.main, "dpo": dpo.main, "generate": generate.main, "sample": sample, "evaluate": evaluate.main,
        "scores": epitome, "mmlu": mmlu.main}  # fmt: skip


def run_stages(names: Sequence[str], params: Params) -> None:
    for name in names:
        stage, _, key = name.partition("@")
        MAIN[stage](key, params)


if __name__ == "__main__":
    with reported():
        params = load()
        run(lambda: run_stages(sys.argv[1:], params), params.hardware)
        threads = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]
        print(f"threads of the group: {sum('gloo' in name for name in threads)}")
