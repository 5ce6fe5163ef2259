"""Networks of timm and of transformers, as image classifiers that read bytes.

Room: recipes. May import torch and `reticent.errors`; timm and transformers only inside the function that
needs them.

Sources of what they are: https://github.com/huggingface/timm (NFNets, ViTs, ...), and transformers.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from reticent.errors import ConfigError

from .._origin import folder_named
from ._layers import PixelsLike

NETWORK: Final = "network"  # in a run's folder: the configuration of a network of transformers


def is_foreign(name: str) -> bool:
    """Whether a network's name is of another library."""
    return name.startswith(("timm:", "transformers:"))


def folder_of(name: str) -> Path | None:
    """The folder that a network's weights come from, if they lie on this machine."""
    return folder_named(name) if is_foreign(name) else None


def foreign(
    name: str,
    *,
    shape: tuple[int, int, int],
    num_classes: int,
    pretrained: bool,
    keep_head: bool = False,
) -> nn.Module:
    """A network of another library, with a new head where the number of classes differs from its own.

    Pixels are scaled as the library says the network wants them.

    Args:
        name: `timm:NAME`, or `transformers:NAME` for what `save_pretrained` wrote to a folder, or a hub name.
        shape: (channels, rows, columns) of the images.
        num_classes: width of its head.
        pretrained: whether it comes with public weights, which the library may fetch.
        keep_head: whether those must include the head's.

    Raises:
        ConfigError[unknown-model]: no such network, or its library is not installed.
        ConfigError[model-input]: it cannot read images of this shape.
        ConfigError[start-from]: its public weights leave more than the head to chance, or the head where it
            is to be kept.
    """
    library, _, rest = name.partition(":")
    make = _timm if library == "timm" else _transformers
    try:
        model = make(rest, shape, num_classes, pretrained, pretrained and keep_head)
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"{name} needs {library}, which is not installed: pip install {library}", code="unknown-model"
        ) from e
    except ConfigError:
        raise
    except Exception as e:  # whatever the library raises while it looks for a name or builds
        raise ConfigError(
            f"{library} gives no network for {name!r} on images of {shape[1]} x {shape[2]} pixels "
            f"({type(e).__name__}: {' '.join(str(e).split())[:200]}).",
            code="unknown-model",
        ) from e
    _check_reads(name, model, shape, num_classes)
    return model


def keep(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Leave in a run's folder what a network of another library is made of beside its weights.

    All of it is public: an architecture, and how its authors scale pixels.

    Args:
        model: what `foreign` made, or any other network, of which nothing is left.
        folder: the run's.

    Returns:
        For the run's result: `pixels`, the mean and the deviation.
    """
    for module in model.modules():
        if isinstance(module, _Logits):
            config: Any = module.inner.config
            config.save_pretrained(folder / NETWORK)
    for module in model.modules():
        if isinstance(module, PixelsLike):
            return {"pixels": {n: getattr(module, n).flatten().tolist() for n in ("mean", "std")}}
    return {}


def scaling_as(model: nn.Module, pixels: Mapping[str, Any] | None) -> nn.Module:
    """The model, which scales pixels as a run noted that its own did, whatever the library says today."""
    for module in model.modules():
        if pixels is not None and isinstance(module, PixelsLike):
            for name in ("mean", "std"):
                getattr(module, name).copy_(torch.tensor(pixels[name]).view(-1, 1, 1))
    return model


def _timm(
    name: str, shape: tuple[int, int, int], num_classes: int, pretrained: bool, keep_head: bool
) -> nn.Module:
    timm = import_module("timm")
    settings = {"pretrained": pretrained, "num_classes": num_classes, "in_chans": shape[0]}
    try:
        body = timm.create_model(name, img_size=shape[1:], **settings)
    except TypeError:  # most convolutional networks read any size, and take no such argument
        body = timm.create_model(name, **settings)
    own = (getattr(body, "pretrained_cfg", None) or {}).get("num_classes")
    if keep_head and own not in (None, num_classes):
        raise _other_head(f"timm:{name}", f"has {own} classes, and the images have {num_classes}")
    wanted = timm.data.resolve_model_data_config(body)
    return nn.Sequential(PixelsLike(wanted["mean"], wanted["std"]), body)


class _Logits(nn.Module):
    """A classifier of transformers, images to logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(pixel_values=x).logits


def _transformers(
    name: str, shape: tuple[int, int, int], num_classes: int, pretrained: bool, keep_head: bool
) -> nn.Module:
    transformers: Any = import_module("transformers")
    config = transformers.AutoConfig.from_pretrained(name, num_labels=num_classes, trust_remote_code=False)
    kind = transformers.AutoModelForImageClassification
    if pretrained:
        body, loaded = kind.from_pretrained(
            name,
            config=config,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        made = _refuse_random_body(name, body, loaded)
        if keep_head and made:
            raise _other_head(f"transformers:{name}", f"does not fit {num_classes} classes, or is missing")
    else:
        body = kind.from_config(config, trust_remote_code=False, dtype=torch.float32)
    try:
        wanted, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # a folder without preprocessor_config.json
        wanted = {}
    pixels = PixelsLike(wanted.get("image_mean") or [0.5] * 3, wanted.get("image_std") or [0.5] * 3)
    return nn.Sequential(pixels, _Logits(body.train()))


def _other_head(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"reset_head is false, and the head that comes with {name} {why}: it would be random. Leave "
        "reset_head out.",
        code="start-from",
    )


def _refuse_random_body(name: str, body: Any, loaded: Any) -> set[str]:
    """What the weights lack, or have in another shape, the library makes at random: only a head may be.

    Returns:
        Names of what it made.
    """
    made = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
    inside = sorted(key for key in made if key.startswith(f"{body.base_model_prefix}."))
    if inside:
        raise ConfigError(
            f"The weights of transformers:{name} lack {len(inside)} parameters beside the head, or have them "
            f"in other shapes: {', '.join(inside[:3])}{', ...' * (len(inside) > 3)}. They would be random. "
            "Give the folder with the configuration that its weights were saved with.",
            code="start-from",
        )
    return made


@torch.no_grad()
def _check_reads(name: str, model: nn.Module, shape: tuple[int, int, int], num_classes: int) -> None:
    """One image of zeros goes through."""
    channels, height, width = shape
    x = torch.zeros((1, height, width, channels), dtype=torch.uint8)
    was_training = model.training
    try:
        found = model.eval()(x).shape
    except (RuntimeError, ValueError, AssertionError, IndexError) as e:
        raise ConfigError(
            f"{name} cannot read images of {height} x {width} pixels and {channels} channels "
            f"({' '.join(str(e).split())[:200]}). Set image_size to what it reads.",
            code="model-input",
        ) from e
    finally:
        model.train(was_training)
    if found != (1, num_classes):
        raise ConfigError(
            f"{name} gives outputs of shape {tuple(found)} for one image, and not {num_classes} logits: it "
            "is no classifier.",
            code="unknown-model",
        )
