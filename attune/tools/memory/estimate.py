"""Estimate memory, disk and time of SFT and DPO before loading any weights, and the largest micro-batch that fits.

    python -m attune memory recipe=empo hardware=gpu --memory 24
    python -m attune memory model=mistral-7b hardware=multi_gpu --memory 80 --teraflops 130
    python -m attune memory recipe=empo hardware=gpu model.hub_id=owner/name --config path/to/its/config

Overrides are those of `python -m attune params`; `params.yaml` is not changed. Where nothing fits, changes that do are
tried and printed, and the exit status is 1. The shapes of conf/model's models are known here; that of another hub model
comes from its config.json, which is downloaded unless `--config` is given; that of a model that stage `base` trains is
in section `tiny`. docs/scale.md lists what the estimate includes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.config.params import compose, load
from attune.config.schema import Params
from attune.report.tables import markdown_table
from attune.runtime.cli import command_parser
from attune.runtime.errors import ModelError, reason
from attune.tools.memory.disk import Disk, disk
from attune.tools.memory.fits import STEPS, USABLE, does_fit, proposals, share, steps_of
from attune.tools.memory.footprint import Kept, kept
from attune.tools.memory.sizes import Size, of_rank, size
from attune.tools.memory.work import EXAMPLES, Work, work

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GIB = 2**30
# The shapes of the hub models of conf/model, by `model.hub_id`, from their config.json.
SHAPES = Path(__file__).with_name("shapes.json")


def composed(overrides: Sequence[str]) -> Params:
    """Compose `overrides` to params, without writing params.yaml.

    Raises:
        ParamsError: they do not compose.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "params.yaml")
        compose(list(overrides), target)
        return load(target)


def shape(params: Params, folder: Path | None) -> PretrainedConfig:
    """The configuration of the base model: from `folder`, `SHAPES`, the hub, a package or folder, or section `tiny`.

    Raises:
        ModelError: there is no such configuration.
    """
    from transformers import AutoConfig

    from attune.models.bert_decoder import AS_DECODER
    from attune.models.tiny import configuration
    from attune.models.weights import checked_gguf, layout

    model, file = params.model, {}
    if folder is None and model.source == "made":
        return configuration(params.tiny, params.tiny.vocab_size)
    if folder is None and model.source == "package" and model.file is not None:
        folder = (path := checked_gguf(model)).parent
        file = {"gguf_file": path.name}
    elif folder is None and model.source != "hub":
        folder = layout(model, "model")
    if folder is not None and not file and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json: set --config to the folder that holds it")
    source, revision = (str(folder), None) if folder else (str(model.hub_id), model.revision)
    known = json.loads(SHAPES.read_text(encoding="utf-8")) if folder is None else {}
    try:
        if source in known:
            config: PretrainedConfig = AutoConfig.for_model(**known[source])
        else:
            config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **file)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the configuration of {source} cannot be loaded: {reason(error)}. Download its config.json into a "
            "folder on a machine with a network, and name that folder: --config FOLDER"
        ) from None
    if model.as_decoder:
        config.update(AS_DECODER)
    return config


def device_memory(params: Params) -> int | None:
    """Bytes of the GPU, or of RAM if `compute.device` is cpu; None if there is no GPU."""
    import torch

    if params.hardware.device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def scaled(one: Kept, two: Kept, micro_batch: int) -> Kept:
    """The memory of a micro-batch, linearly extrapolated from one and two examples."""
    values = {key: value + (micro_batch - 1) * (getattr(two, key) - value) for key, value in vars(one).items()}
    return Kept(**values)


def fitting(one: Kept, two: Kept, batch: int, room: float) -> int:
    """The largest micro-batch that divides `batch` and takes at most `room` bytes; 0 if one example does not fit."""
    fits = [n for n in range(1, batch + 1) if batch % n == 0 and scaled(one, two, n).total <= room]
    return max(fits, default=0)


def page(config: PretrainedConfig, params: Params, memory: int | None, teraflops: float | None = None) -> str:
    """The table of sizes, a column for each stage with and without checkpointing; what fits; the disk; the time."""
    whole = size(config, params)
    rank = of_rank(whole, config, params.hardware)
    steps = steps_of(config)
    batches = {step: int(getattr(params, step).batch_size) for step in steps}
    cases = [(step, checkpointing) for step in steps for checkpointing in (False, True)]
    ones, twos = ([kept(config, params, *case, n) for case in cases] for n in (1, 2))
    micro = [min(params.hardware.micro_batch_size, share(params, batches[step])) for step, _ in cases]
    rows = [["GiB", *(f"{step}{', checkpointing' if checkpointing else ''}" for step, checkpointing in cases)]]
    rows += _rows(rank, [scaled(*given) for given in zip(ones, twos, micro, strict=True)])
    rows.append(["micro-batch", *map(str, micro)])
    if memory is not None:
        room = USABLE * memory - rank.fixed
        most = [share(params, batches[step]) for step, _ in cases]
        fits = [fitting(*given, room) for given in zip(ones, twos, most, strict=True)]
        rows.append(["micro-batch that fits", *(str(size) if size else "none" for size in fits)])
    left_out = [] if steps == STEPS else [f"DPO of {config.model_type} runs in TRL's padded batches: no estimate."]
    ends = [_verdict(params, memory), *left_out, _disk(disk(params, whole))]
    ends.append(_time(work(config, params, whole), params.hardware.processes * params.hardware.nodes, teraflops))
    return "\n".join([_heading(params, whole), "", markdown_table(rows), "", *ends])


def _disk(taken: Disk) -> str:
    model, one, several, outs, linked, copied = (
        f"{bytes_ / 1e9:,.0f}"
        for bytes_ in (taken.model, taken.checkpoint, taken.checkpoints, taken.outs, taken.linked, taken.copied)
    )
    return (
        f"Disk, in GB: base model {model}, a checkpoint {one}, checkpoints at once {several}, outs {outs}; together "
        f"{linked} where DVC links outs to its cache, {copied} where it copies them. At 300 MB/s a checkpoint takes "
        f"{taken.seconds:,.0f} s."
    )


def _time(needed: Work, ranks: int, teraflops: float | None) -> str:
    sft, dpo = (f"{flop / 1e15:,.1f}" for flop in (needed.sft, needed.dpo))
    said = f"Products, in PFLOP: {sft} for {EXAMPLES:,} dialogues of SFT, {dpo} for {EXAMPLES:,} pairs of DPO"
    if teraflops is None:
        return f"{said}; --teraflops RATE, what a GPU reaches in training, gives the time."
    sft, dpo = (f"{60 * hours:,.1f}" for hours in needed.hours(ranks * teraflops * 1e12))
    return f"{said}: {sft} and {dpo} minutes on {ranks} x {teraflops:g} TFLOP/s."


def _rows(whole: Size, cases: Sequence[Kept]) -> list[list[str]]:
    fixed = {
        "weights": whole.weights,
        "adapter": whole.adapter,
        "gradients": whole.gradients,
        "optimizer state": whole.optimizer,
    }
    if whole.gathered:
        fixed["gathered by FSDP"] = whole.gathered
    rows = [[name, *[_gib(bytes_)] * len(cases)] for name, bytes_ in fixed.items()]
    rows.append(["reference", *["in a file"] * len(cases)])
    rows.append(["activations", *(_gib(case.activations + case.again) for case in cases)])
    rows.append(["logits, or a chunk", *(_gib(case.logits + case.passing) for case in cases)])
    rows.append(["total", *(_gib(whole.fixed + case.total) for case in cases)])
    return rows


def _gib(bytes_: float) -> str:
    return f"{bytes_ / GIB:.2f}" if bytes_ >= GIB / 100 else f"{bytes_ / GIB:.4f}"


def _heading(params: Params, whole: Size) -> str:
    hardware = params.hardware
    lengths = f"sft.max_length {params.sft.max_length}, dpo.max_length {params.dpo.max_length}"
    return (
        f"{params.model.name}: {whole.parameters:,} parameters, LoRA of rank {params.lora.r} {whole.lora:,}\n"
        f"{hardware.device}, {hardware.precision}; {lengths}; in effect: training.gradient_checkpointing="
        f"{str(hardware.gradient_checkpointing).lower()}"
    )


def _verdict(params: Params, memory: int | None) -> str:
    if memory is None:
        return "No GPU is visible here: --memory GIB names its memory, and the micro-batch that fits is shown."
    measured = "" if params.hardware.device == "cpu" else " It was not measured on a GPU."
    return f"Fits: at most {USABLE:.0%} of {memory / GIB:.1f} GiB.{measured}"


def main(argv: Sequence[str]) -> None:
    """Print the estimate.

    Raises:
        SystemExit: status 1, if training does not fit.
    """
    parser = command_parser("memory", __doc__)
    parser.add_argument("overrides", nargs="*", help="as of `python -m attune params`: model=mistral-7b hardware=gpu")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of the GPU; default: that of this machine")
    parser.add_argument("--config", type=Path, metavar="FOLDER", help="folder with the base model's config.json")
    parser.add_argument("--teraflops", type=float, metavar="RATE", help="TFLOP/s that a GPU reaches in training")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.teraflops is not None and not arguments.teraflops > 0:
        parser.error(f"--teraflops {arguments.teraflops:g}: must be above 0")
    params = composed(arguments.overrides)
    memory = device_memory(params) if arguments.memory is None else int(arguments.memory * GIB)
    config = shape(params, arguments.config)
    print(page(config, params, memory, arguments.teraflops))
    if memory is not None and not does_fit(config, params, memory):
        found = proposals(config, params, memory)
        print("\nDoes not fit." + (" What fits, by this estimate:" if found else " Nothing that was tried does."))
        for overrides in found:
            print(f"    {' '.join(overrides)}")
        sys.exit(1)
