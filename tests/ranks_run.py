"""The stages that run on several ranks, one after another in the same processes: `python -m ranks_run sft dpo@e1`."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from stages import dpo, evaluate, generate, mmlu, sft
from stages.errors import reported
from stages.launch import run
from stages.params import load
from stages.sections import Params


def sample(variant: str, params: Params) -> None:
    generate.main(variant, replace(params, generate=replace(params.generate, do_sample=True)))


MAIN = {"dpo": dpo.main, "generate": generate.main, "sample": sample, "evaluate": evaluate.main, "mmlu": mmlu.main}


def run_stages(names: Sequence[str], params: Params) -> None:
    for name in names:
        stage, _, key = name.partition("@")
        MAIN[stage](key, params) if key else sft.main(params)


if __name__ == "__main__":
    with reported():
        params = load()
        run(lambda: run_stages(sys.argv[1:], params), params.hardware)
