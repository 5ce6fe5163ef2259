"""Networks by name.

Room: recipes. May import torch and `reticent.errors`.
"""

import re
from typing import Final

from torch import nn

from reticent.errors import ConfigError

from ._foreign import foreign, is_foreign
from ._layers import ACROSS_CHANNELS, ACTIVATIONS, Pixels
from ._nf_resnet import nf_resnet
from ._small import SmallCNN, cnn_on_features, deep_tanh_cnn, linear_on_features, mlp, tanh_cnn
from ._wide_resnet import WideResNet

KNOWN: Final = (
    "wrn-DEPTH-WIDTH (16-4, 40-4, 28-10, ...; behind it -nonorm or -layernorm, -plain filters, -skipinit or "
    "-noskip, an activation such as -gelu or -tanh, -scaled, -dropout0.3), nf-resnet-50 (101, 152, 200, 288, "
    "600; behind it -se, -stochdepth0.1, -dropout0.25), tanh-cnn, "
    "tanh-cnn-gn, deep-tanh-cnn, small-cnn, mlp-WIDTH, timm:NAME, transformers:FOLDER; linear and cnn on "
    "scattering features"
)


def network(
    name: str,
    *,
    shape: tuple[int, int, int],
    num_classes: int,
    standardise: nn.Module | None = None,
    pretrained: bool = False,
    keep_head: bool = False,
    deviation: float = 0.25,
) -> nn.Module:
    """A network with random weights from torch's global generator.

    Args:
        name: one of `KNOWN`.
        shape: (channels, rows, columns) of what it reads.
        num_classes: width of its head.
        standardise: what comes first where it reads scattering features; None: it reads pixels.
        pretrained: of a network of another library: whether it comes with public weights.
        keep_head: whether those must include the head's.
        deviation: of pixels, by which a network of ours scales them.

    Raises:
        ConfigError[unknown-model]: there is no such network, or it reads the other kind of input.
        ConfigError[model-input]: it cannot read images of this shape.
        ConfigError[start-from]: its public weights leave more to chance than they may.
    """
    if standardise is not None:
        return _on_features(name, standardise, shape, num_classes)
    if is_foreign(name):
        return foreign(name, shape=shape, num_classes=num_classes, pretrained=pretrained, keep_head=keep_head)
    channels, side, _ = shape
    if name in ("tanh-cnn", "tanh-cnn-gn"):
        _at_least(name, shape, 22)
        body = tanh_cnn(channels, side, num_classes, groups=4 if name == "tanh-cnn-gn" else 0)
    elif name == "deep-tanh-cnn":
        if shape[1:] != (32, 32):
            raise _unfit(name, shape, "images of 32 x 32 pixels")
        body = deep_tanh_cnn(channels, num_classes)
    elif name == "small-cnn":
        body = SmallCNN(channels, num_classes)
    elif match := re.fullmatch(r"mlp-(\d{1,5})", name):
        body = mlp(channels * side * shape[2], int(match[1]), num_classes)
    elif match := re.fullmatch(r"wrn-(\d{1,3})-(\d{1,2})((?:-[a-z0-9.]+)*)", name):
        body = _wide_resnet(name, int(match[1]), int(match[2]), match[3], channels, num_classes)
    elif match := re.fullmatch(r"nf-resnet-(50|101|152|200|288|600)((?:-[a-z0-9.]+)*)", name):
        said, rates = _options(name, match[2], ("dropout", "stochdepth"))
        if set(said) - {"se"}:
            raise _unknown(name)
        if channels != 3:
            raise _unfit(name, shape, "colour images")
        _at_least(name, shape, 32)
        body = nf_resnet(
            int(match[1]),
            num_classes,
            squeeze_excite="se" in said,
            stochastic_depth=rates.get("stochdepth", 0.0),
            dropout=rates.get("dropout", 0.0),
        )
    else:
        raise _unknown(name)
    return nn.Sequential(Pixels(deviation), body)


def _wide_resnet(
    name: str, depth: int, widen: int, options: str, channels: int, num_classes: int
) -> nn.Module:
    if depth < 10 or (depth - 4) % 6 or widen < 1:
        raise ConfigError(f"A Wide ResNet's depth is 10, 16, 22, 28, ...; got {name}.", code="unknown-model")
    said, rates = _options(name, options, ("dropout",))
    activations = [option for option in said if option in {*ACTIVATIONS, *ACROSS_CHANNELS}]
    unknown = set(said) - {"nonorm", "layernorm", "plain", "skipinit", "noskip", "scaled"} - set(activations)
    clash = {"nonorm", "layernorm"} <= set(said) or {"skipinit", "noskip"} <= set(said)
    if unknown or clash or len(activations) > 1:
        raise _unknown(name)
    across = activations[0] if activations and activations[0] in ACROSS_CHANNELS else None
    if across and "scaled" in said:
        raise ConfigError(
            f"{name}: {across} mixes channels, so no constant gives it variance 1. Leave -scaled out.",
            code="unknown-model",
        )
    if across == "glu" and not {"nonorm", "layernorm"} & set(said):
        raise ConfigError(
            f"{name}: glu leaves 8 of the stem's 16 channels, too few for 16 groups. Add -layernorm or "
            "-nonorm.",
            code="unknown-model",
        )
    return WideResNet(
        depth,
        widen,
        num_classes,
        channels=channels,
        norm="none" if "nonorm" in said else "layer" if "layernorm" in said else "group",
        standardise="plain" not in said,
        skip_gain="skipinit" in said,
        skip="noskip" not in said,
        activation=activations[0] if activations else "relu",
        scaled="scaled" in said,
        dropout=rates.get("dropout", 0.0),
    )


def _options(name: str, text: str, rated: tuple[str, ...]) -> tuple[list[str], dict[str, float]]:
    """What stands behind a network's name: plain words, and those of `rated` with their rates in [0, 1)."""
    said, rates = [], {}
    for option in text.split("-")[1:]:
        match = re.fullmatch(rf"({'|'.join(rated)})(0(?:\.\d+)?)", option)
        if option in said or (match and match[1] in rates):
            raise _unknown(name)
        if match:
            rates[match[1]] = float(match[2])
        else:
            said.append(option)
    return said, rates


def _on_features(
    name: str, standardise: nn.Module, shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    channels, side, width = shape
    if name == "linear":
        return linear_on_features(standardise, channels * side * width, num_classes)
    if name == "cnn":
        return cnn_on_features(standardise, channels, side, num_classes)
    raise ConfigError(
        f"Scattering features are read by model = linear or cnn, got {name!r}. Set features = none for a "
        "network on pixels.",
        code="unknown-model",
    )


def _unknown(name: str) -> ConfigError:
    return ConfigError(f"No network is named {name!r}. Known: {KNOWN}.", code="unknown-model")


def _at_least(name: str, shape: tuple[int, int, int], side: int) -> None:
    if min(shape[1:]) < side or shape[1] != shape[2]:
        raise _unfit(name, shape, f"square images of at least {side} x {side} pixels")


def _unfit(name: str, shape: tuple[int, int, int], reads: str) -> ConfigError:
    return ConfigError(
        f"{name} reads {reads}; these have {shape[0]} channels and {shape[1]} x {shape[2]} pixels.",
        code="model-input",
    )
