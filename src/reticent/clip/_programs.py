"""What a compiled graph was made for: it is used only while all of that is still so.

Room: clip. May import torch.
"""

import functools
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from reticent.clip._precision import precisions

Plain = bool | int | float | complex | str | bytes | torch.dtype | torch.device | None
_FLAGS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fingerprint(
    model: nn.Module, losses: Callable[..., Tensor], leaves: Sequence[Any]
) -> tuple[tuple[Any, ...], list[Any]]:
    """Everything a graph depends on besides the values of its inputs, as far as Python shows it.

    Shapes and types of the rows; of the model, its modules, their modes, plain attributes and hooks, the
    shapes and strides of its tensors and which of them train; of the losses, their code and the plain
    values, functions and objects (by identity) they close over; autocast and torch's numeric settings. Not
    seen: what an object or container holds that the losses close over or that is an attribute of a module (a
    config, a list), but for tuples of plain values in modules.

    Returns:
        The fingerprint, and the objects named in it by identity: whoever keeps it keeps them, since an
        identity is only a name while its object lives.
    """
    alive: list[Any] = []
    seen = (
        tuple(_leaf(leaf, alive) for leaf in leaves),
        tuple(
            (name, _identity(module, alive), *_module(module, alive))
            for name, module in model.named_modules()
        ),
        tuple((n, *_layout(t), t.requires_grad) for n, t in model.named_parameters()),
        tuple((n, *_layout(t)) for n, t in model.named_buffers()),
        _callable(losses, 4, alive),
        tuple(
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in sorted({p.device.type for p in model.parameters()} | {"cpu"})
        ),
        torch.get_default_dtype(),
        tuple(map(precisions, ("cpu", "cuda"))),
        torch.are_deterministic_algorithms_enabled(),
    )
    return seen, alive


def _identity(value: Any, alive: list[Any]) -> int:
    alive.append(value)
    return id(value)


def _layout(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.stride(), t.dtype, t.device


def _leaf(leaf: Any, alive: list[Any]) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape[1:], leaf.dtype, leaf.device
    return (type(leaf), leaf) if isinstance(leaf, Plain) else _identity(leaf, alive)


def _module(module: nn.Module, alive: list[Any]) -> tuple[Any, ...]:
    seen = [
        (name, _identity(value, alive) if isinstance(value, Tensor) else value)
        for name, value in vars(module).items()
        if isinstance(value, Tensor) or _is_plain(value)
    ]
    hooks = [(name, tuple(vars(module).get(name) or ())) for name in _FLAGS]
    return (*seen, *hooks)


def _is_plain(value: Any) -> bool:
    return isinstance(value, Plain) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _callable(func: Any, depth: int, alive: list[Any]) -> Any:
    """A function by its code and what it reads; anything else by value or identity."""
    if isinstance(func, Plain):
        return type(func), func
    if depth == 0 or not isinstance(func, FunctionType | MethodType | functools.partial):
        return _identity(func, alive)
    if isinstance(func, MethodType):
        return _identity(func.__self__, alive), _callable(func.__func__, depth, alive)
    if isinstance(func, functools.partial):
        parts = (func.func, *func.args, *func.keywords.values())
        return tuple(func.keywords), *(_callable(part, depth - 1, alive) for part in parts)
    cells = [c.cell_contents for c in func.__closure__ or () if _is_set(c)]
    read = [*cells, *(func.__defaults__ or ()), *(func.__kwdefaults__ or {}).values()]
    names = [n for n in _names(func.__code__) if n in func.__globals__]
    plain = [func.__globals__[n] for n in names if isinstance(func.__globals__[n], Plain)]
    return _identity(func.__code__, alive), *(_callable(part, depth - 1, alive) for part in (*read, *plain))


def _names(code: CodeType) -> list[str]:
    inner = [n for c in code.co_consts if isinstance(c, CodeType) for n in _names(c)]
    return [*code.co_names, *inner]


def _is_set(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
