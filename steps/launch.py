"""Training by several processes: torch's elastic launcher starts them on this machine, one for each GPU, and again if
one dies.

Each runs steps/training_process.py. All that they know is in a file, and the first of all writes its result to another.
"""

import json
import os
import socket
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from fast_electra_core import errors
from fast_electra_core.errors import ConfigError, GroupError, Interrupted
from steps import lifecycle
from steps.store import Store
from steps.trace import Plain, running

MAX_RESTARTS = 3
"""How often a group whose process has died begins again, from its newest checkpoint, before the step fails."""
JOB, RESULT, ERROR = "job.json", "result.json", "error.json"
_JOIN_SECONDS = 1800  # until all machines are there: on a cluster nodes may have to be started, and images pulled
_STOP_SECONDS = 300
"""So long processes that are to stop may take for a step, for scoring that has begun, and for a checkpoint's way to S3;
torch would kill them after 30 s. Who takes the machine away has a term of his own."""


class Machine(NamedTuple):
    """This machine among those that train together."""

    node_index: int = 0
    num_nodes: int = 1
    address: str = "127.0.0.1"
    """Of the first."""
    attempt: str = ""
    """The same on all machines, and another one for each try."""


ONE = Machine()
"""No other machine trains with this one."""


def pretrain(plan: Plain, text: Plain, frozen: Plain, corrupted: Plain, *, machine: Machine = ONE) -> tuple[Plain, str]:
    """lifecycle.pretrain; two empty things on a machine that has not the first process."""
    result: tuple[Plain, str] = _train("pretrain", (plan, text, frozen, corrupted), machine)
    return result


def train_auxiliary(plan: Plain, text: Plain) -> tuple[Plain, str]:
    """lifecycle.train_auxiliary, by all GPUs of this machine."""
    result: tuple[Plain, str] = _train("train_auxiliary", (plan, text), ONE)
    return result


def count_processes(config: Plain) -> int:
    """Processes that train on this machine.

    Raises:
        ConfigError: more than there are GPUs.
    """
    import torch

    wanted, gpus = config["processes_per_node"], torch.cuda.device_count()
    if wanted is not None and gpus and wanted > gpus:
        raise ConfigError(
            f"processes_per_node must be at most the number of GPUs, {gpus}, got {wanted}. Leave it out: there is then "
            "one for each"
        )
    return wanted or max(1, gpus)


def _train(work: str, arguments: Sequence[Plain], machine: Machine) -> Any:
    plan, text = arguments[:2]
    num_processes = count_processes(plan["config"])
    if num_processes * machine.num_nodes == 1:
        return getattr(lifecycle, work)(*arguments)
    with running(plan), tempfile.TemporaryDirectory() as scratch:
        store = Store(plan["config"]["store"])
        for key in (*text["shard_keys"], *plan.get("old_shard_keys", ())):  # once for the machine
            store.get_folder(key)
        folder = Path(scratch)
        (folder / JOB).write_text(json.dumps({"work": work, "arguments": arguments}))
        _run_group(folder, num_processes, machine)
        return json.loads((folder / RESULT).read_text()) if (folder / RESULT).is_file() else ({}, "")


def _run_group(folder: Path, num_processes: int, machine: Machine) -> None:
    """The processes of this machine have ended well.

    Raises:
        FastElectraError: the first that one of them met; or the machines did not find each other, or no longer do.
        Interrupted: this process was asked to stop, and has stopped them.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    several = machine.num_nodes > 1
    # Below the ports that systems give out themselves. The attempts of a run do not share one: the last may linger.
    port = 20_000 + zlib.crc32(machine.attempt.encode()) % 10_000 if several else 0
    # Else a group that begins again finds the addresses of the processes that have died (torch 2.13), and waits there.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of warnings there is one per process that asks for nothing
    own_address = _own_address(machine.address)
    # Else gloo listens where this machine's name leads, which may be its loopback: no other machine finds it there.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface(own_address))
    meeting_place = f"{machine.address}:{port}"
    launch = LaunchConfig(
        min_nodes=machine.num_nodes,
        max_nodes=machine.num_nodes,
        nproc_per_node=num_processes,
        run_id=machine.attempt or "alone",
        rdzv_backend="c10d",
        rdzv_endpoint=meeting_place,
        rdzv_configs={"is_host": machine.node_index == 0, "join_timeout": _JOIN_SECONDS, "read_timeout": _JOIN_SECONDS},
        max_restarts=MAX_RESTARTS,
        local_addr=own_address,
        shutdown_timeout=_STOP_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),  # by itself a folder among the system's, which stays there
    )
    try:
        elastic_launch(launch, sys.executable)("-u", "-m", "steps.training_process", str(folder))
    except SignalException as signal:
        raise Interrupted(f"stopped by {signal.sigval.name}; resume goes on from the last checkpoint") from None
    except ChildFailedError:
        if (folder / ERROR).is_file():
            kind, message = json.loads((folder / ERROR).read_text())
            raise getattr(errors, kind)(message) from None
        raise
    except RendezvousTimeoutError:
        raise GroupError(
            f"not all of the {machine.num_nodes} machines that train together were there within "
            f"{_JOIN_SECONDS / 60:g} minutes: one may still wait for a node, or be out of reach; its own task says "
            "which. Mend that, and resume"
        ) from None
    except RendezvousConnectionError as error:
        if machine.node_index == 0:
            raise GroupError(
                f"the machines that train together cannot meet at {meeting_place}: {error.__cause__}. Resume: it takes "
                "another port"
            ) from None
        raise GroupError(
            f"the first of the machines that train together, {machine.address}, has ended or is out of reach; its own "
            "task says why. Mend that, and resume"
        ) from None


def _own_address(of_first: str) -> str:
    """This machine's address in the network in which the first one has that address. No name has to be resolved."""
    family = socket.getaddrinfo(of_first, None)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((of_first, 9))  # chooses a way there, and sends nothing
        return str(probe.getsockname()[0])


def _interface(address: str) -> str:
    """The name of the network interface that has this address of this machine; empty where the system hides it."""
    interfaces: dict[str, list[Any]] = psutil.net_if_addrs()
    return next((name for name, theirs in interfaces.items() if address in (each.address for each in theirs)), "")
