"""A model that no process holds whole while it trains: FSDP2 shards weights, gradients and the optimizer's moments.

Each layer is gathered for its passes and let go again. A checkpoint holds whole tensors, so it is the same file as that
of replicas or of a single process, and a run goes on from it in either way. docs/decisions/0017.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fast_electra_core.errors import ConfigError
from fast_electra_core.methods import Method
from fast_electra_core.models import layers_of
from fast_electra_core.parallel import Group


def sharded(method: Method, group: Group) -> Method:
    """What trains in the method's stead: the same with each layer, and the rest of the weights, sharded over the group,
    from the first process's weights on.

    The method itself stays whole in the first process, which scores and saves it; in the others it has no weights any
    more. What does not train, as a frozen auxiliary, is whole in every process: it has neither gradients nor moments.

    Raises:
        ConfigError: one process is alone.
    """
    if group.size == 1:
        raise ConfigError(
            "sharding must be ddp where one process trains alone, got fsdp: there is nobody to share with. Give "
            "--processes_per_node 2 or more, or --num_nodes, or leave --sharding out"
        )
    machinery = vars(nn.Module())
    beside = {id(value): value for name, value in vars(method).items() if name not in machinery}
    trained = copy.deepcopy(method, beside)  # a frozen auxiliary is not copied
    if not group.is_first:
        method.to("meta")
    for value in (*trained.parameters(), *trained.buffers()):
        dist.broadcast(value.detach(), src=0)  # as DDP does
    mesh = init_device_mesh(next(trained.parameters()).device.type, (group.size,))
    for layer in layers_of(trained):
        fully_shard(layer, mesh=mesh)
    fully_shard(trained, mesh=mesh)
    return trained


def gathered(tensors: dict[str, Tensor], group: Group) -> dict[str, Tensor]:
    """Whole tensors, in the first process; in the others those alone that are not sharded.

    One after the other, so that a device holds no more than one of them whole.
    """
    found = {}
    for name, value in tensors.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if group.is_first or whole is value:
            found[name] = value if whole is value else whole.cpu()
    return found


def scattered(tensors: dict[str, Tensor], trained: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Of a checkpoint's tensors, the same in every process, the shards that are this one's."""
    names = {f"model.{name}": parameter for name, parameter in trained.named_parameters()}
    groups: Iterable[dict[str, list[nn.Parameter]]] = optimizer.param_groups
    order = [parameter for each in groups for parameter in each["params"]]

    def shard_of(name: str, value: Tensor) -> Tensor:
        is_moment = name.startswith("optimizer.") and value.ndim > 0
        like = order[int(name.split(".")[1])] if is_moment else names.get(name)
        if not isinstance(like, DTensor) or like.shape != value.shape:  # another model's: refused on being restored
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    return {name: shard_of(name, value) for name, value in tensors.items()}
