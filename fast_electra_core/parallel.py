"""Several processes train one model, each on its rows of every batch: who they are, and what is summed over them.

All of them hold the whole model. Losses are divided by counts over the whole batch, so gradients are summed, and the
numbers are those of one process up to the order of addition. The first process alone scores, logs and writes.
"""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from fast_electra_core.checkpoint import Checkpoint
from fast_electra_core.errors import ConfigError


@dataclass(frozen=True)
class Group:
    """This process among those that train together. With more than one, torch's default process group is theirs."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether scoring, logging and writing are up to this process."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """This process's rows of a batch: neighbours, as many as any other's, or one more.

        Raises:
            ConfigError: there are more processes than rows.
        """
        if batch_size < self.size:
            raise ConfigError(
                f"batch_size must be at least the number of processes, {self.size}, got {batch_size}: each trains on "
                "rows of its own. Give a larger --batch_size, or fewer --num_nodes or --processes_per_node"
            )
        return slice(self.rank * batch_size // self.size, (self.rank + 1) * batch_size // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """values, summed over the processes in place; on the CPU no process waits for its device."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_all(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each of the values, () float64 under the same names everywhere, summed over the processes."""
        if self.size == 1:
            return values
        flat = self.sum(torch.stack(list(values.values())))
        return dict(zip(values, flat.unbind(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in some process: the same answer in all of them."""
        return bool(self.sum(torch.tensor(int(flag)))) if self.size > 1 else flag

    def replicate(self, module: nn.Module) -> nn.Module:
        """The module, whose gradients are from here on averaged over the processes, and its weights the first one's."""
        if self.size == 1:
            return module
        # Looking for unused parameters keeps the layout of the buckets that are summed. Without, it changes behind the
        # first step; with it the order of addition among three or more, and a resumed run would not be the same bits.
        return DistributedDataParallel(module, find_unused_parameters=True)

    def accumulating(self, module: nn.Module, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: gradients are exchanged with the batch's last one only."""
        if is_last or not isinstance(module, DistributedDataParallel):
            return contextlib.nullcontext()
        return module.no_sync()

    def from_first(self, checkpoint: Checkpoint | None, device: torch.device) -> Checkpoint | None:
        """The first process's checkpoint, in all of them: they may be on machines that do not share a disk."""
        if self.size == 1:
            return checkpoint
        outline = [(checkpoint.step, _shapes(checkpoint.tensors), checkpoint.state) if checkpoint else None]
        dist.broadcast_object_list(outline)
        if outline[0] is None:
            return None
        step, shapes, state = outline[0]
        tensors = {}
        for name, (shape, dtype) in shapes.items():
            value = checkpoint.tensors[name] if checkpoint and self.is_first else torch.empty(shape, dtype=dtype)
            value = value.contiguous().to(device)
            dist.broadcast(value, src=0)
            tensors[name] = value.cpu()
        return Checkpoint(step, tensors, state)


ALONE = Group()
"""One process trains."""


class GroupLost(RuntimeError):
    """Others of the group have died or hang: this process has to end, and the group to begin again."""


_JOIN = timedelta(minutes=10)  # processes that start together still import, and reach each other, at their own pace
_GLOO_SAYS = re.compile("gloo/transport|timeout caused pair closure")  # of its errors, which have no type of their own
_ANSWER = timedelta(seconds=10)  # who is alive answers at once


@contextlib.contextmanager
def joined(device: torch.device, *, timeout_seconds: float, store: Store | None = None) -> Iterator[Group]:
    """This process's group, as torch's elastic launcher sets the environment: gloo between CPUs, NCCL between GPUs.

    An exchange waits for timeout_seconds for those that are slow. store is where the processes find each other, if it
    is not at MASTER_ADDR.

    Raises:
        GroupLost: others died or gave no answer; it names them. NCCL ends a process itself, if it notices first.

    All leave together. After an error within, the process is to end at once (`os._exit`), for its launcher to end the
    others.
    """
    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if size == 1:
        yield ALONE
        return
    if store is None:
        store, _, _ = next(rendezvous("env://", timeout=_JOIN))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout_seconds)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    roll = dist.new_group(backend="gloo", timeout=_ANSWER)  # its connections outlive those of an exchange that failed
    places = [""] * size
    dist.all_gather_object(places, f"rank {rank} (process {os.getpid()} on {socket.gethostname()})")
    try:
        group = Group(rank, size)
        yield group
        # Nobody leaves before the first has saved and sent what came out: a machine's launcher waits five minutes for
        # others when its own processes have ended, and with it goes the place where the launchers meet.
        group.any(False)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _GLOO_SAYS.search(str(error)):
            raise
        raise GroupLost(
            f"{places[rank]} got no answer from {_call_roll(roll, rank, places)}: {error}. It ends, for the group to "
            f"begin again from its newest checkpoint. An answer may take {timeout_seconds:g} s: raise "
            "--group_timeout_seconds where one was merely slow, look at the machine of one that fails again"
        ) from error
    # Behind an error nothing is destroyed: between GPUs that is an exchange, too, for which the others would not come.
    dist.destroy_process_group()


def _call_roll(group: dist.ProcessGroup, rank: int, places: list[str]) -> str:
    """Who does not answer now. The first process finds out about all that hang, the others about the first."""
    try:
        dist.monitored_barrier(group, timeout=_ANSWER, wait_all_ranks=True)
    except RuntimeError as error:
        if silent := re.search(r"Ranks ([\d, ]+) failed to pass", str(error)):
            return ", ".join(places[int(each)] for each in silent[1].split(","))
        return "one that has died" if rank == 0 else f"{places[0]}, or one that it names"
    return "the others, who are alive"


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in tensors.items()}
