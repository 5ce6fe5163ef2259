"""What a rank has of parameters, before and after a backward in which nothing may update them.

Room: dist. May import torch and `reticent.errors`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from reticent.errors import UnsupportedModel


@contextmanager
def not_updated(params: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Refuse a block in which a hook on the nodes that accumulate gradients, which cannot be listed, updates
    them.

    Raises:
        UnsupportedModel[parameter-hook]: a parameter is another than before.
    """
    before = {name: _print_of(p) for name, p in params.items()}
    yield
    changed = [name for name, p in params.items() if _print_of(p) != before[name]]
    if changed:
        raise UnsupportedModel(
            f"A hook of autograd changed parameters {changed[:3]} in the backward, by gradients without "
            "clipping and noise. Do not keep this model: remove the hook, make the model anew, and let "
            "PrivateStep's optimizer make the updates.",
            code="parameter-hook",
        )


@torch.no_grad()
def _print_of(p: Any) -> tuple[str, str]:
    """Sum and length of a rank's part, which an update changes; as text, so that NaN equals NaN."""
    t = (p.to_local() if isinstance(p, DTensor) else p).detach()
    t = torch.view_as_real(t) if t.is_complex() else t
    length = torch.linalg.vector_norm(t, dtype=torch.float64)
    return repr(float(t.sum(dtype=torch.float64))), repr(float(length))
