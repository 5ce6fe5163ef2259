"""Where training begins: weights of another run, and which parameters are trained.

Room: recipes. May import torch, `reticent.{clip,train}` and `reticent.errors`.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reticent.clip import fix
from reticent.errors import ConfigError, UnsupportedModel
from reticent.train import load_tensors

BatchNorm = Literal["refuse", "group-norm", "freeze"]


def mixing_layers(model: nn.Module) -> list[str]:
    """Names of the layers of batch normalisation, which mix the images of a batch."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def start(
    model: nn.Module,
    *,
    weights: str | None,
    reset_head: bool,
    train_only: str,
    batch_norm: BatchNorm = "refuse",
) -> nn.Module:
    """The model with other weights loaded, batch normalisation replaced, and what is not trained frozen.

    Args:
        model: changed in place, unless batch normalisation is replaced.
        weights: a safetensors file, or None. Its names may lack the number of the layer that scales pixels.
        reset_head: whether the head keeps its own first weights; see `head_of`.
        train_only: patterns of parameter names with commas between; "head" is all of the head.
        batch_norm: what becomes of layers that mix the images of a batch; see `reticent.fix`.

    Raises:
        UnsupportedModel[batch-norm]: there are such layers, and nothing was said of them, or one of them
            cannot be replaced.
        ConfigError[start-from]: the file cannot be read, or its weights do not fit.
        ConfigError[train-only]: a pattern matches no parameter.
        UnsupportedModel[no-head]: a head is asked for, and there is none.
    """
    patterns = [p.strip() for p in train_only.split(",")]
    head = head_of(model) if reset_head or "head" in patterns else ()
    mixing = mixing_layers(model)
    if mixing and batch_norm == "refuse":
        raise UnsupportedModel(
            f"Batch normalisation at '{mixing[0]}' and {len(mixing) - 1} more places mixes the images of a "
            "batch. Set batch_norm = group-norm (then train all layers), or batch_norm = freeze to keep the "
            "statistics that public weights came with.",
            code="batch-norm",
        )
    left_out = head if reset_head else ()
    found = None if weights is None else _read(Path(weights), model)
    if found is not None and mixing and any(name.endswith("running_mean") for name in found):
        _load(model, found, left_out, weights)  # before its statistics are gone
        found = None
    if mixing and batch_norm != "refuse":
        model = fix(model, batch_norm=batch_norm)
    if found is not None:
        _load(model, found, left_out, weights)
    names = [name for name, _ in model.named_parameters()]

    def fits(name: str, pattern: str) -> bool:
        return _within(name, head) if pattern == "head" else fnmatchcase(name, pattern)

    for pattern in patterns:
        if not any(fits(name, pattern) for name in names):
            raise ConfigError(
                f"train_only: no parameter is named like {pattern!r}. There are: {', '.join(names[:20])}"
                + (", ..." if len(names) > 20 else "")
                + ".",
                code="train-only",
            )
    for name, p in model.named_parameters():
        p.requires_grad_(any(fits(name, pattern) for pattern in patterns))
    return model


def head_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers, or parameters, that are the head.

    | network | head |
    |---|---|
    | has a module with `get_classifier`, as timm's | what that returns: a layer of any kind, or several |
    | has a module with `base_model_prefix`, as those of transformers | all of that module beside its base |
    | any other | the last linear layer |

    Raises:
        UnsupportedModel[no-head]: there is none of these.
    """
    for of_library in (_by_classifier, _beside_base):
        for name, module in model.named_modules():
            if found := of_library(model, name, module):
                return found
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UnsupportedModel(
            "The network has no linear layer, and so no head that could be reset or trained alone.",
            code="no-head",
        )
    return (linear[-1],)


def take_head(model: nn.Module, other: nn.Module) -> None:
    """Give a network the head of another one of the same kind."""
    head, theirs = head_of(model), other.state_dict()
    mine = {name: theirs[name] for name in model.state_dict() if _within(name, head)}
    model.load_state_dict(mine, strict=False)


def _by_classifier(model: nn.Module, name: str, module: nn.Module) -> tuple[str, ...]:
    """timm's own answer; of a distilled network there are two heads, and some are convolutions."""
    get = getattr(module, "get_classifier", None)
    if not callable(get):
        return ()
    found = get()
    layers = list(found) if isinstance(found, tuple | list) else [found]
    return tuple(
        name
        for name, layer in model.named_modules()
        if any(layer is one for one in layers) and next(layer.parameters(), None) is not None
    )


def _beside_base(model: nn.Module, name: str, module: nn.Module) -> tuple[str, ...]:
    """Children and parameters of a classifier of transformers beside the network that others share."""
    base = getattr(module, "base_model_prefix", None)
    if not isinstance(base, str) or not isinstance(getattr(module, base, None), nn.Module):
        return ()
    children = [child for child, layer in module.named_children() if any(True for _ in layer.parameters())]
    own = [child for child, _ in module.named_parameters(recurse=False)]
    return tuple(f"{name}.{child}" if name else child for child in [*children, *own] if child != base)


def _within(name: str, head: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in head)


def _read(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The file's tensors, by the model's names: of a library's own file, without our first layer, too."""
    try:
        found: dict[str, Tensor] = dict(load_tensors(path)[0])
    except (OSError, SafetensorError, ValueError) as e:
        raise ConfigError(f"start_from: cannot read '{path}': {e}.", code="start-from") from e
    own = model.state_dict().keys()
    if not own & found.keys():
        for prefix in ("1.", "1.inner."):
            if own & {f"{prefix}{name}" for name in found}:
                return {f"{prefix}{name}": t for name, t in found.items()}
    return found


def _load(model: nn.Module, found: dict[str, Tensor], left_out: Sequence[str], path: str | None) -> None:
    own = model.state_dict()
    found = {name: t for name, t in found.items() if not _within(name, left_out)}
    found |= {name: t for name, t in own.items() if _within(name, left_out)}
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
