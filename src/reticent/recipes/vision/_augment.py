"""Views of an image: random crops and flips, several of each image, averaged inside its privacy unit.

Room: recipes. May import torch.

An image's loss is the mean over its K views, so the views' gradients are averaged *before* clipping, and the
image's influence is bounded by C whatever K is [1]. Every image is given the same draws whatever it shows.

Shape letters: B image, K view, H row, W column, C channel.

Sources:
    [1] De et al. 2022, arXiv:2204.13650, section 3.2 (augmentation multiplicity).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """A transform for `reticent.train`: (x, y) -> (views of x, y), x of bytes (B, H, W) or (B, H, W, C).

    Args:
        multiplicity: K >= 1, views of each image.
        pad: an image is cropped, at its own size, from itself mirrored by so many pixels at each edge, fewer
            than it has; 0 crops nothing.
        flip: whether half of the views are mirrored left to right.
        colour: brightness, contrast and, where there are colours, saturation are each multiplied by a factor
            from 1 - colour to 1 + colour; 0 changes nothing.
        hue: hues are turned by up to this share of the circle, at most a half, either way; nothing in grey.

    Every view has draws of its own. (torchvision's transforms give one draw to all that they are handed
    together, so K B views would take K B calls.)

    Guarantee:
        A view depends on its own image and the generator only. Rows before and after are B.
    """

    multiplicity: int
    pad: int = 4
    flip: bool = True
    colour: float = 0.0
    hue: float = 0.0

    def __call__(self, rows: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, H, W, ...) -> (B, K, H, W, ...), on the device of the images."""
        x, y = rows
        shape = (len(x), self.multiplicity)
        down, right = (
            torch.randint(-self.pad, self.pad + 1, shape, generator=generator).to(x.device) for _ in range(2)
        )
        mirrored = (torch.rand(shape, generator=generator) < 0.5).to(x.device) & self.flip
        i = _mirror(torch.arange(x.shape[1], device=x.device) + down[..., None], x.shape[1])  # (B, K, H)
        across = torch.arange(x.shape[2], device=x.device)
        j = torch.where(mirrored[..., None], across.flip(0), across) + right[..., None]
        j = _mirror(j, x.shape[2])  # (B, K, W)
        b = torch.arange(len(x), device=x.device)[:, None, None, None]
        views = x[b, i[..., None], j[..., None, :]]
        if self.colour:
            factors = 1 + self.colour * (2 * torch.rand((3, *shape), generator=generator) - 1)
            views = recoloured(views, *factors.to(x.device))
        if self.hue and views.ndim == 5 and views.shape[-1] == 3:
            turns = self.hue * (2 * torch.rand(shape, generator=generator) - 1)
            views = turned(views, turns.to(x.device))
        return views, y


def recoloured(views: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Views (B, K, H, W) or (B, K, H, W, 3), of bytes, after three changes in this order.

    Brightness multiplies; contrast moves from the view's mean grey, saturation from each pixel's grey, by
    factors of shape (B, K). After each, values are cut to [0, 255].
    """
    planes = views if views.ndim == 5 else views[..., None]
    x = planes.to(torch.float32)

    def blend(x: Tensor, towards: Tensor | float, factor: Tensor) -> Tensor:
        f = factor[..., None, None, None]
        return (f * x + (1 - f) * towards).clamp(0.0, 255.0)

    x = blend(x, 0.0, brightness)
    x = blend(x, _grey(x).mean((2, 3), keepdim=True), contrast)
    if planes.shape[-1] == 3:
        x = blend(x, _grey(x), saturation)
    return x.round().to(views.dtype).view_as(views)


def turned(views: Tensor, turns: Tensor) -> Tensor:
    """Views (B, K, H, W, 3) of bytes, each pixel's hue (of HSV) moved by `turns` of the circle, (B, K)."""
    x = views.to(torch.float32)
    largest, where = x.max(-1)
    spread = largest - x.amin(-1)
    red, green, blue = x.unbind(-1)
    sixths = torch.stack([green - blue, blue - red, red - green]) / spread.clamp(min=1.0)
    hue = 2.0 * where + sixths.movedim(0, -1).gather(-1, where[..., None])[..., 0]
    k = (
        torch.tensor([5.0, 3.0, 1.0], device=x.device) + (hue + 6.0 * turns[..., None, None])[..., None]
    ) % 6.0
    x = largest[..., None] - spread[..., None] * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)
    return x.round().to(views.dtype)


def _grey(x: Tensor) -> Tensor:
    """Luminance (ITU-R 601) of (..., 3), kept as one channel; one channel is its own."""
    if x.shape[-1] != 3:
        return x
    return (x * x.new_tensor([0.2989, 0.587, 0.114])).sum(-1, keepdim=True)


def _mirror(index: Tensor, size: int) -> Tensor:
    """Indices outside [0, size) reflected at the edges, as padding with `mode="reflect"` has it."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def mean_over_views(
    losses: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor],
) -> Callable[[nn.Module, Any], Tensor]:
    """The loss of images in K views, from the loss of single images: (B, K, ...), (B, ...) -> (B,)."""

    def averaged(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        x, y = rows
        views = x.shape[1]
        each = losses(model, (x.flatten(0, 1), y.repeat_interleave(views, 0)))
        return each.view(-1, views).mean(1)

    return averaged
