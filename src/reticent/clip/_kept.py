"""What is kept of a backward until its sums are formed has to stay what its norms were taken of.

Room: clip. May import torch, `reticent.errors`.
"""

from dataclasses import fields, is_dataclass
from typing import Any, Final

import torch
from torch import Tensor

from reticent.errors import UnsupportedModel

_TORCHS_OWN: Final = ("torch.utils.checkpoint", "torch.autograd.graph")

Versions = tuple[tuple[Tensor, int], ...]


def tensors_of(form: Any) -> list[Tensor]:
    """Those that a form is made of."""
    found: list[Tensor] = []
    for field in fields(form) if is_dataclass(form) else ():
        part = getattr(form, field.name)
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, tuple):
            found += [t for t in part if isinstance(t, Tensor)]
        else:
            found += tensors_of(part)
    return found


def versions_of(form: Any) -> Versions:
    """The tensors of a form, with how often each was written to."""
    return tuple((t, t._version) for t in tensors_of(form) if not t.is_inference())


def refuse_written(name: str, versions: Versions) -> None:
    """Refuse a form that was written to since.

    Raises:
        UnsupportedModel[kept-written]: what the norms were taken of is there no more.
    """
    if any(t._version != version for t, version in versions):
        raise UnsupportedModel(
            f"What the gradient of '{name}' is made of was written to, in place, later in the same backward "
            "(by a tensor hook, a custom autograd function, or a part that is run once more into the same "
            "memory), and its norm bounds it no more. Write out of place, or use method='loop'.",
            code="kept-written",
        )


def unpacks_elsewhere() -> bool:
    """Whether hooks of the user's pack what is saved now.

    They may unpack into the same memory again and again, and by ways that torch keeps no version of.
    Torch's own give fresh tensors.
    """
    autograd: Any = getattr(torch._C, "_autograd", None)
    top = getattr(autograd, "_top_saved_tensors_default_hooks", None)
    if top is None:
        return True
    hooks = top(True)
    return hooks is not None and any(getattr(h, "__module__", None) not in _TORCHS_OWN for h in hooks)
