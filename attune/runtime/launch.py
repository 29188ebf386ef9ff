"""Start a stage as several processes (ranks) if `ranks.processes` or `ranks.nodes` is greater than 1.

The command of a stage stays the same, `python -m stages.dpo e1`. That process then runs torchrun's elastic agent, which
starts the ranks with the same command, monitors them, and stops all of them when one dies. A process that was started
directly with torchrun or `accelerate launch` is already a rank, and starts no other.

The agent is called as a library: the command `torchrun` prints its own traceback for every failed rank, mixes the
output of all ranks, and exits with 1 on SIGTERM; `accelerate launch --cpu --num_processes 2` starts one process.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.runtime.cli import main_module
from attune.runtime.distributed import LOST, process_group
from attune.runtime.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

    from attune.config.schema import Hardware

# Output of all ranks except the first of a machine, which prints to the terminal; kept if a rank died.
LOGS = Path(".checkpoints/ranks")
# Environment variable: index of this machine; 0 is the machine of runtime.rendezvous. Under Slurm, SLURM_NODEID.
NODE_RANK = "NODE_RANK"
LAST_LINES = 12
# Seconds that a machine waits for the others, which may still run the previous stage.
PATIENCE = 24 * 3600
# Seconds from SIGTERM to SIGKILL, for ranks that do not end by themselves: enough to finish a step, and to write and
# hash the 32 GB of an adapter of rank 1024 with its optimizer state on a slow disk.
SHUTDOWN = 600


def run(stage: Callable[[], None], hardware: Hardware) -> None:
    """Run a stage in this process, or start ranks with the same command line and wait for them.

    Raises:
        UserError: a rank died and the others were stopped, or `hardware` does not fit this machine.
    """
    if hardware.processes * hardware.nodes > 1 and "RANK" not in os.environ:
        _start(hardware)
    else:
        with process_group(hardware.device):
            stage()


def command() -> list[str]:
    """The arguments of Python that started this process: `-m`, the stage's module, and its arguments."""
    return ["-m", main_module(), *sys.argv[1:]]


def settings(hardware: Hardware, logs: Path, environment: Mapping[str, str] = os.environ) -> LaunchConfig:
    """The configuration of torchrun's agent on this machine.

    Args:
        hardware: processes, nodes and rendezvous.
        logs: folder for the output of ranks.
        environment: may set `NODE_RANK`.

    Raises:
        UserError: `NODE_RANK` is not the index of a machine.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    node = environment.get(NODE_RANK, "0")
    if not node.isdecimal() or int(node) >= hardware.nodes:
        raise UserError(f"{NODE_RANK} = {node!r}, but ranks.nodes = {hardware.nodes}: it counts machines from 0")
    single = hardware.nodes == 1
    return LaunchConfig(
        min_nodes=hardware.nodes,
        max_nodes=hardware.nodes,
        nproc_per_node=hardware.processes,
        run_id="attune",
        # static: so that rank 0 can be on the machine that runs DVC.
        rdzv_backend="c10d" if single else "static",
        rdzv_endpoint="localhost:0" if single else str(hardware.rendezvous),
        rdzv_configs={} if single else {"rank": int(node), "timeout": PATIENCE},
        local_addr="localhost" if single else None,
        max_restarts=0,
        shutdown_timeout=SHUTDOWN,
        logs_specs=DefaultLogsSpecs(str(logs), dict.fromkeys(range(1, hardware.processes), Std.ALL)),
    )


def accelerate_environment(config: Path, processes: int) -> dict[str, str]:
    """The variables that `accelerate launch --config_file` adds to the environment of its ranks.

    Raises:
        UserError: there is no such file, it is not a configuration of Accelerate, or it needs DeepSpeed.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = [
        "--config_file",
        str(config),
        "--num_machines=1",
        f"--num_processes={processes}",
        "--main_process_port=0",
    ]
    try:
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*arguments, "-m", "stages"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"ranks.accelerate = {str(config)!r} cannot be read: {error}") from None
    if args.use_deepspeed:
        raise UserError(
            f"ranks.accelerate = {str(config)!r} is for DeepSpeed, with which no stage was tested: "
            "conf/accelerate/fsdp.yaml shards weights, gradients and optimizer state as ZeRO-3 does"
        )
    return {name: value for name, value in prepare_multi_gpu_env(args).items() if os.environ.get(name) != value}


def _start(hardware: Hardware) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    _require_gpus(hardware)
    if hardware.accelerate is not None:
        os.environ |= accelerate_environment(Path(hardware.accelerate), hardware.processes * hardware.nodes)
    # `message` replaces the reports of the agent. Each module of the agent sets its own log level.
    for name in [key for key in logging.root.manager.loggerDict if key.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    arguments = command()
    # With the index of the machine, since several may share a file system.
    logs = LOGS / f"{'-'.join(arguments[1:])}.{os.environ.get(NODE_RANK, '0')}"
    shutil.rmtree(logs, ignore_errors=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        elastic_launch(settings(hardware, logs), sys.executable)(*arguments)
    except ChildFailedError as error:
        raise UserError(message(error.failures, hardware.processes * hardware.nodes, logs)) from None
    except SignalException as error:
        # Rank 0 has printed what was saved.
        sys.exit(128 + error.sigval)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    shutil.rmtree(logs, ignore_errors=True)


def _require_gpus(hardware: Hardware) -> None:
    import torch

    if hardware.device == "cuda" and (visible := torch.cuda.device_count()) < hardware.processes:
        raise UserError(
            f"ranks.processes = {hardware.processes}, but {visible} GPUs are visible here: each rank needs one"
        )


def message(failures: Mapping[int, Any], ranks: int, logs: Path) -> str:
    """The error message for the rank that died first.

    Args:
        failures: rank to torch's `ProcessFailure`, of all ranks that had died when the agent polled: `local_rank` and
            `exitcode`, negative for a signal.
        ranks: their total number.
        logs: folder of their output.
    """
    number, failure = min(failures.items(), key=lambda item: (_follows(item[1].exitcode), item[0]))
    code = failure.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    output = _last_lines(next(logs.glob(f"*/attempt_0/{failure.local_rank}/stderr.log"), None))
    return (
        f"rank {number} of {ranks} {how}; {output}\n"
        "the other ranks were stopped; the same command continues from the last checkpoint"
    )


def _follows(code: int) -> int:
    """Sort key: 0 for a first cause, more for a consequence (it waited for a dead rank, or the agent stopped it)."""
    return {LOST: 1, -signal.SIGTERM: 2, 128 + signal.SIGTERM: 2}.get(code, 0)


def _last_lines(log: Path | None) -> str:
    if log is None:
        return "its output is above"
    # A progress bar overwrites its line.
    lines = [line.rpartition("\r")[2] for line in log.read_bytes().decode(errors="replace").split("\n")]
    last = [f"  {line}" for line in lines if line.strip()][-LAST_LINES:]
    return "\n".join([f"{log} ends with", *(last or ["  (nothing)"])])
