"""Where training begins: weights of another run, and which parameters are trained.

Room: recipes. May import torch, `reticent.train` and `reticent.errors`.
"""

from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from reticent.errors import ConfigError
from reticent.train import load_tensors


def start(model: nn.Module, *, weights: str | None, reset_head: bool, train_only: str) -> nn.Module:
    """The same model, with other weights loaded and what is not to be trained frozen.

    Args:
        model: changed in place.
        weights: a safetensors file, or None.
        reset_head: whether the last linear layer keeps its own first weights.
        train_only: patterns of parameter names with commas between; "head" is the last linear layer.

    Raises:
        ConfigError[start-from]: the file cannot be read, or its weights do not fit.
        ConfigError[train-only]: a pattern matches no parameter.
    """
    head = _head(model)
    if weights is not None:
        _load(model, Path(weights), head if reset_head else None)
    patterns = [f"{head}.*" if p.strip() == "head" else p.strip() for p in train_only.split(",")]
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"train_only: no parameter is named like {pattern!r}. There are: {', '.join(names[:20])}"
                + (", ..." if len(names) > 20 else "")
                + ".",
                code="train-only",
            )
    for name, p in model.named_parameters():
        p.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
    return model


def _head(model: nn.Module) -> str:
    """Name of the last linear layer."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def _load(model: nn.Module, path: Path, left_out: str | None) -> None:
    try:
        found: dict[str, Tensor] = dict(load_tensors(path)[0])
    except (OSError, SafetensorError, ValueError) as e:
        raise ConfigError(f"start_from: cannot read '{path}': {e}.", code="start-from") from e
    own = model.state_dict()
    if left_out is not None:
        found = {name: t for name, t in found.items() if not name.startswith(f"{left_out}.")}
        found |= {name: t for name, t in own.items() if name.startswith(f"{left_out}.")}
    missing, foreign = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    unfit = sorted(name for name in own.keys() & found.keys() if own[name].shape != found[name].shape)
    if missing or foreign or unfit:
        raise ConfigError(
            f"start_from: the weights in '{path}' are not of this network: {_some(missing)} missing, "
            f"{_some(foreign)} unknown, {_some(unfit)} of another shape.",
            code="start-from",
        )
    model.load_state_dict(found)


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
    )
