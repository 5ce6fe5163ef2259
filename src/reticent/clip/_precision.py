"""Full precision for norms and sums, whatever the user allows elsewhere.

Room: clip. May import torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

_FULL: Final = ("none", "ieee")


def precisions(kind: str) -> tuple[str, ...]:
    """What float32 products on a kind of device are computed in, e.g. "ieee", "tf32", "bf16"."""
    return tuple(backend.fp32_precision for backend in _backends(kind))


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """TF32 has ten bits and bfloat16 seven: norms and sums are formed in neither."""
    reduced = [b for b in _backends(device.type) if b.fp32_precision not in _FULL]
    if not reduced:
        yield
        return
    every = (*_backends("cpu"), *_backends("cuda"))  # the older switch moves others, too
    was, legacy = [b.fp32_precision for b in every], _legacy()
    try:
        if legacy != "highest":  # torch refuses to multiply where its older switch says otherwise
            torch.set_float32_matmul_precision("highest")
        for b in reduced:
            b.fp32_precision = "ieee"
        yield
    finally:
        if legacy != "highest":
            torch.set_float32_matmul_precision(legacy)
        for b, precision in zip(every, was, strict=True):
            b.fp32_precision = "none"
            if b.fp32_precision != precision:  # not what it takes over from a switch above it
                b.fp32_precision = precision


def _backends(kind: str) -> tuple[Any, ...]:
    all_of = torch.backends
    match kind:
        case "cuda":
            return all_of.cuda.matmul, all_of.cudnn.conv, all_of.cudnn.rnn  # pyright: ignore[reportAttributeAccessIssue]
        case "cpu":
            return all_of.mkldnn.matmul, all_of.mkldnn.conv, all_of.mkldnn.rnn  # pyright: ignore[reportAttributeAccessIssue]
        case _:
            return ()


def _legacy() -> str:
    """The older switch; "highest" where it was left alone and the newer ones were not."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"
