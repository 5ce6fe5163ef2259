"""Networks for images: Wide ResNet and ResNet-50 with group normalisation in plain torch, and ViT.

SiLU takes the place of ReLU. An activation that rounding moves across ReLU's kink, when other kernels
compute it, changes an example's gradient by per cents, and no engine's sum could be compared tightly.

Sources:
    [1] Zagoruyko and Komodakis 2016, arXiv:1605.07146 (Wide ResNet).
    [2] He et al. 2015, arXiv:1512.03385 (ResNet-50's bottleneck; stride in the 3 x 3 convolution).
    [3] De et al. 2022, arXiv:2204.13650 (Wide ResNets with group normalisation for private training).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.small import classify
from benchmarks.work import Work


def _images(num_examples: int, size: int, num_classes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(num_examples, 3, size, size), torch.randint(0, num_classes, (num_examples,))


class WideBlock(nn.Module):
    """Normalise, SiLU, convolve, twice, beside the input (a 1 x 1 convolution of it where shapes change)."""

    def __init__(self, wide_in: int, wide_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(16, wide_in)
        self.conv1 = nn.Conv2d(wide_in, wide_out, 3, stride, 1, bias=False)
        self.norm2 = nn.GroupNorm(16, wide_out)
        self.conv2 = nn.Conv2d(wide_out, wide_out, 3, 1, 1, bias=False)
        changes = stride != 1 or wide_in != wide_out
        self.skip = nn.Conv2d(wide_in, wide_out, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, wide_in, H, W) -> (B, wide_out, H / stride, W / stride)."""
        h = F.silu(self.norm1(x))
        beside = x if self.skip is None else self.skip(h)
        return beside + self.conv2(F.silu(self.norm2(self.conv1(h))))


class WideResNet(nn.Module):
    """[1] with group normalisation of 16 groups [3]."""

    def __init__(self, depth: int, widen: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = []
        wide_in = 16
        for stage, stride in enumerate((1, 2, 2)):
            for index in range((depth - 4) // 6):
                wide_out = 16 * widen * 2**stage
                blocks.append(WideBlock(wide_in, wide_out, stride if index == 0 else 1))
                wide_in = wide_out
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.GroupNorm(16, wide_in)
        self.head = nn.Linear(wide_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes)."""
        h = F.silu(self.norm(self.blocks(self.stem(x))))
        return self.head(h.mean((2, 3)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1, beside the input [2]."""

    def __init__(self, wide_in: int, narrow: int, stride: int) -> None:
        super().__init__()
        wide_out = 4 * narrow
        self.conv1 = nn.Conv2d(wide_in, narrow, 1, bias=False)
        self.norm1 = nn.GroupNorm(32, narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride, 1, bias=False)
        self.norm2 = nn.GroupNorm(32, narrow)
        self.conv3 = nn.Conv2d(narrow, wide_out, 1, bias=False)
        self.norm3 = nn.GroupNorm(32, wide_out)
        self.skip = (
            nn.Sequential(nn.Conv2d(wide_in, wide_out, 1, stride, bias=False), nn.GroupNorm(32, wide_out))
            if stride != 1 or wide_in != wide_out
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, wide_in, H, W) -> (B, 4 narrow, H / stride, W / stride)."""
        h = F.silu(self.norm1(self.conv1(x)))
        h = F.silu(self.norm2(self.conv2(h)))
        return F.silu(self.skip(x) + self.norm3(self.conv3(h)))


class ResNet50(nn.Module):
    """[2] with group normalisation of 32 groups."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        blocks = []
        wide_in = 64
        for stage, count in enumerate((3, 4, 6, 3)):
            narrow = 64 * 2**stage
            for index in range(count):
                blocks.append(Bottleneck(wide_in, narrow, 2 if stage and index == 0 else 1))
                wide_in = 4 * narrow
        self.stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.norm = nn.GroupNorm(32, 64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(wide_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes)."""
        h = self.pool(F.silu(self.norm(self.stem(x))))
        return self.head(self.blocks(h).mean((2, 3)))


def wide_resnet(depth: int, widen: int, num_examples: int, size: int = 32) -> Work:
    """Wide ResNet on square images."""
    return classify(WideResNet(depth, widen), _images(num_examples, size, 10), "wide-resnet")


def with_views(depth: int, widen: int, num_examples: int, num_views: int, size: int = 32) -> Work:
    """Wide ResNet whose examples are several views each; an example's loss is the mean over them."""
    model = WideResNet(depth, widen)
    x = torch.randn(num_examples, num_views, 3, size, size)
    y = torch.randint(0, 10, (num_examples,))

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        logits = model(x.flatten(0, 1))
        each = F.cross_entropy(logits, y.repeat_interleave(num_views), reduction="none")
        return each.view(-1, num_views).mean(1)

    return Work(model, losses, (x, y))


def resnet50(num_examples: int = 16, size: int = 128) -> Work:
    """ResNet-50 on square images."""
    return classify(ResNet50(), _images(num_examples, size, 1000))


def vit(num_examples: int = 8, size: int = 224) -> Work:
    """ViT-B/16 with 10 classes."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=size, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = ViTForImageClassification(config)
    x, y = _images(num_examples, size, 10)

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x).logits, y, reduction="none")

    return Work(model, losses, (x, y))
