"""Start a stage as many processes (ranks), where `ranks.processes` or `ranks.nodes` asks for more than one.

The command of a stage stays what it is, `python -m stages.dpo e1`. That process then runs torchrun's agent, which
starts the ranks with the same command, watches them, and ends all of them when one dies. A process that torchrun or
`accelerate launch` has started by hand is a rank already, and starts none.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.runtime.distributed import LOST, process_group
from attune.runtime.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

    from attune.config.schema import Hardware

# What ranks other than a machine's first say, which has the terminal; kept where one died.
LOGS = Path(".checkpoints/ranks")
# The machine's number where there are several, from 0, that of runtime.rendezvous: Slurm's SLURM_NODEID.
NODE_RANK = "NODE_RANK"
LAST_LINES = 12
# How long a machine waits for the others, in seconds: they come when their stage before has ended.
PATIENCE = 24 * 3600
# From SIGTERM to SIGKILL, in seconds: the end of a step and a checkpoint of it.
SHUTDOWN = 60


def run(stage: Callable[[], None], hardware: Hardware) -> None:
    """Run a stage: here, or in ranks that this process starts with its own command line, and waits for.

    Raises:
        UserError: a rank died; the others have been ended.
        UserError: `hardware` does not fit this machine.
    """
    if hardware.processes * hardware.nodes > 1 and "RANK" not in os.environ:
        _start(hardware)
    else:
        with process_group(hardware.device):
            stage()


def command() -> list[str]:
    """The arguments of Python that started this process: `-m`, the stage's module, and its arguments."""
    return ["-m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]]  # type: ignore[union-attr]


def settings(hardware: Hardware, logs: Path, environment: Mapping[str, str] = os.environ) -> LaunchConfig:
    """What torchrun's agent on this machine is to do.

    Args:
        hardware: processes, nodes and rendezvous.
        logs: folder of what ranks say.
        environment: says which of several machines this one is.

    Raises:
        UserError: `NODE_RANK` is none of the machines'.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    node = environment.get(NODE_RANK, "0")
    if not node.isdecimal() or int(node) >= hardware.nodes:
        raise UserError(f"{NODE_RANK} = {node!r}, but ranks.nodes = {hardware.nodes}: it counts machines from 0")
    one = hardware.nodes == 1
    return LaunchConfig(
        min_nodes=hardware.nodes,
        max_nodes=hardware.nodes,
        nproc_per_node=hardware.processes,
        run_id="attune",
        # Of several machines the first is rank 0's: static, so that the one that DVC runs on can be it.
        rdzv_backend="c10d" if one else "static",
        rdzv_endpoint="localhost:0" if one else str(hardware.rendezvous),
        rdzv_configs={} if one else {"rank": int(node), "timeout": PATIENCE},
        local_addr="localhost" if one else None,
        max_restarts=0,
        shutdown_timeout=SHUTDOWN,
        logs_specs=DefaultLogsSpecs(str(logs), dict.fromkeys(range(1, hardware.processes), Std.ALL)),
    )


def accelerate_environment(config: Path, processes: int) -> dict[str, str]:
    """What `accelerate launch --config_file` puts into the environment of its ranks, beside this process's own.

    Raises:
        UserError: there is no such file, or it is none of Accelerate's.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    said = ["--config_file", str(config), "--num_machines=1", f"--num_processes={processes}", "--main_process_port=0"]
    try:
        args, read, _ = _validate_launch_command(launch_command_parser().parse_args([*said, "-m", "stages"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"ranks.accelerate = {str(config)!r} cannot be read: {error}") from None
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join([*read.deepspeed_config, "mixed_precision"])
    made = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    return {name: value for name, value in made.items() if os.environ.get(name) != value}


def _start(hardware: Hardware) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    _require_gpus(hardware)
    if hardware.accelerate is not None:
        os.environ |= accelerate_environment(Path(hardware.accelerate), hardware.processes * hardware.nodes)
        if "ACCELERATE_USE_DEEPSPEED" in os.environ and find_spec("deepspeed") is None:
            raise UserError(f"{hardware.accelerate} needs DeepSpeed, which is not installed: pip install deepspeed")
    # What it says of a rank's end is said below, in fewer words. Each of its modules sets a level of its own.
    for name in [one for one in logging.root.manager.loggerDict if one.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    words = command()
    # Machines may have one disk.
    logs = LOGS / f"{'-'.join(words[1:])}.{os.environ.get(NODE_RANK, '0')}"
    shutil.rmtree(logs, ignore_errors=True)
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        elastic_launch(settings(hardware, logs), sys.executable)(*words)
    except ChildFailedError as error:
        raise UserError(message(error.failures, hardware.processes * hardware.nodes, logs)) from None
    except SignalException as error:
        # Rank 0 has said what is kept.
        sys.exit(128 + error.sigval)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    shutil.rmtree(logs, ignore_errors=True)


def _require_gpus(hardware: Hardware) -> None:
    import torch

    if hardware.device == "cuda" and (there := torch.cuda.device_count()) < hardware.processes:
        raise UserError(
            f"ranks.processes = {hardware.processes}, but {there} GPUs are visible on this machine: a rank needs one"
        )


def message(failures: Mapping[int, Any], ranks: int, logs: Path) -> str:
    """What a person needs to know of the rank whose end ended the others.

    Args:
        failures: rank to torch's `ProcessFailure`, of those that had ended when the agent looked: `local_rank` and
            `exitcode`, negative for a signal.
        ranks: how many there were.
        logs: folder of what they said.
    """
    number, one = min(failures.items(), key=lambda item: (_follows(item[1].exitcode), item[0]))
    code = one.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    said = _last_said(next(logs.glob(f"*/attempt_0/{one.local_rank}/stderr.log"), None))
    return (
        f"rank {number} of {ranks} {how}; {said}\n"
        "the other ranks were ended; the same command goes on from the last checkpoint"
    )


def _follows(code: int) -> int:
    """How likely a rank's end follows another's: it lost a rank that it waited for, or the agent ended it."""
    return {LOST: 1, -signal.SIGTERM: 2}.get(code, 0)


def _last_said(log: Path | None) -> str:
    if log is None:
        return "what it said stands above"
    # A progress bar writes its states one over another.
    lines = [line.rpartition("\r")[2] for line in log.read_bytes().decode(errors="replace").split("\n")]
    last = [f"  {line}" for line in lines if line.strip()][-LAST_LINES:]
    return "\n".join([f"{log} ends with", *(last or ["  (nothing)"])])
