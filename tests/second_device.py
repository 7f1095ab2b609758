"""A device beside the CPU, for machines without a GPU: it computes with the CPU's kernels, but what is on it is nowhere
else. An operation on tensors of both devices fails as it does on a GPU, and what would make the CPU wait is written
down.

Importing this takes, for the whole process, the place that torch keeps for accelerators of others.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
# Their result, or its shape, is a number for the CPU.
_ASKS = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
    _aten.masked_select.default,
    _aten.nonzero.default,
    _aten.repeat_interleave.Tensor,
    _aten._unique2.default,
}


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("second", backend_module=_Module())
SECOND = torch.device("second", 0)

waits: list[str] = []
"""Operations for which the CPU would have waited, for a GPU's sake."""
_pinned: dict[int, torch.UntypedStorage] = {}


class OnSecond(Tensor):
    """A tensor on the device; `there` is what it holds."""

    there: Tensor

    @staticmethod
    def __new__(cls, there: Tensor) -> "OnSecond":
        assert type(there) is Tensor, type(there)
        self: OnSecond = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, there.shape, there.stride(), there.storage_offset(), dtype=there.dtype, device=SECOND
        )
        self.there = there
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnSecond({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch has none for a class of somebody else's

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """Within, tensors can be made on the device or moved to it, and `Tensor.pin_memory` works."""

    def __enter__(self) -> "SecondDevice":
        self._pin_memory, Tensor.pin_memory = Tensor.pin_memory, _pin  # type: ignore[method-assign,assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Tensor.pin_memory = self._pin_memory  # type: ignore[method-assign]
        _pinned.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def moved(module: nn.Module) -> nn.Module:
    """The module itself, all that it holds now on the device, what is shared still shared."""
    known: dict[int, Tensor] = {}

    def there(tensor: Tensor) -> Tensor:
        if isinstance(tensor, OnSecond):
            return tensor
        if id(tensor) not in known:
            value: Tensor = OnSecond(tensor.detach())
            known[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
        return known[id(tensor)]

    for each in module.modules():
        for held in (each._parameters, each._buffers):
            held.update({name: there(tensor) for name, tensor in held.items() if tensor is not None})
    return module


def _pin(tensor: Tensor) -> Tensor:
    if tensor.untyped_storage().data_ptr() not in _pinned:
        tensor = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)  # as torch does
        _pinned[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
    return tensor


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    ours = [each for each in tensors if isinstance(each, OnSecond)]
    wanted = torch.device(kwargs["device"]) if kwargs.get("device") else None
    if not ours and (wanted is None or wanted.type != SECOND.type):
        return func(*args, **kwargs)
    target = _target(func, tensors, wanted)
    if func in _COPIES:
        source = tensors[-1]
        if target.type != source.device.type:
            _note_copy(func, source, is_non_blocking=kwargs.get("non_blocking") or args[-1] is True)
    elif any(not isinstance(each, OnSecond) and not _is_number(each, func) for each in tensors):
        raise RuntimeError(f"{func}: tensors on several devices: {[str(each.device) for each in tensors]}")
    elif func in _ASKS or any(each.dtype in (torch.bool, torch.uint8) for each in _indices(func, args)):
        waits.append(str(func))
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    bare_args, bare_kwargs = tree_map_only(OnSecond, lambda each: each.there, (args, kwargs))
    result = func(*bare_args, **bare_kwargs)
    if target.type == "cpu":
        return args[0] if func is _aten.copy_.default else result
    known = {id(each.there): each for each in ours}  # an operation in place gives back what it was given
    return tree_map_only(Tensor, lambda each: known[id(each)] if id(each) in known else OnSecond(each), result)


def _is_number(tensor: Tensor, func: Any) -> bool:
    """A single number of the CPU's may go into what is computed place by place, as a parameter."""
    return not tensor.ndim and torch.Tag.pointwise in func.tags


def _target(func: Any, tensors: list[Tensor], wanted: torch.device | None) -> torch.device:
    if func is _aten.copy_.default:
        return tensors[0].device
    return wanted or SECOND


def _note_copy(func: Any, source: Tensor, *, is_non_blocking: bool) -> None:
    """From the device a copy waits for what is to be copied; to it only where the memory is pinned it does not."""
    if isinstance(source, OnSecond) or not is_non_blocking or source.untyped_storage().data_ptr() not in _pinned:
        waits.append(f"{func} from {source.device}")


def _indices(func: Any, args: Any) -> list[Tensor]:
    if func not in (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default):
        return []
    return [each for each in args[1] if each is not None]
