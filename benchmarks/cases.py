"""The cases by name. Random weights and random data: what is measured does not depend on either.

Dropout is off everywhere: some peers cannot run it, and the sums could not be compared.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from benchmarks import small, text, vision
from benchmarks.work import Case

_HF = ("transformers",)

CASES: Final = MappingProxyType(
    {
        "gpt2": Case(
            about="GPT-2 (12 layers, d 768, V 50,257, tied head), B 8, T 100",
            build=lambda: text.gpt2(num_layers=12),
            needs=_HF,
        ),
        "gpt2-4": Case(
            about="the same with 4 layers",
            build=lambda: text.gpt2(num_layers=4),
            needs=_HF,
        ),
        "bert-base": Case(
            about="BERT base, classification, B 8, T 128",
            build=lambda: text.bert(train="all"),
            needs=_HF,
        ),
        "bitfit": Case(
            about="the same, biases and classifier only",
            build=lambda: text.bert(train="bias"),
            needs=_HF,
        ),
        "last-layer": Case(
            about="the same, classifier only",
            build=lambda: text.bert(train="classifier"),
            needs=_HF,
        ),
        "smollm2": Case(
            about="SmolLM2-135M's shapes (30 layers, d 576, 9 heads over 3, V 49,152, tied head), B 8, T 128",
            build=lambda: text.llama(),
            needs=_HF,
        ),
        "smollm2-lora": Case(
            about="the same, LoRA of rank 8 on q, k, v, o",
            build=lambda: text.llama(lora_rank=8),
            needs=(*_HF, "peft"),
        ),
        "long": Case(
            about="a decoder of 4 layers, d 256, V 8,000, at T 1,024, B 4",
            build=lambda: text.gpt2(
                num_layers=4, num_examples=4, length=1024, width=256, num_heads=4, vocabulary=8000
            ),
            needs=_HF,
        ),
        "vit-b16": Case(
            about="ViT-B/16 at 224 x 224, B 8",
            build=lambda: vision.vit(),
            needs=_HF,
        ),
        "wrn-16-4": Case(
            about="Wide ResNet 16-4 with group normalisation and SiLU, 32 x 32, B 64",
            build=lambda: vision.wide_resnet(depth=16, widen=4, num_examples=64),
        ),
        "wrn-16-4-views": Case(
            about="Wide ResNet 16-4, 4 views of each image averaged before clipping, 32 x 32, B 16",
            build=lambda: vision.with_views(depth=16, widen=4, num_examples=16, num_views=4),
        ),
        "wrn-28-10": Case(
            about="Wide ResNet 28-10 with group normalisation and SiLU, 32 x 32, B 16",
            build=lambda: vision.wide_resnet(depth=28, widen=10, num_examples=16),
        ),
        "resnet50-gn": Case(
            about="ResNet-50 with group normalisation and SiLU, 128 x 128, B 16",
            build=lambda: vision.resnet50(),
        ),
        "mlp": Case(about="784-1024-1024-10 perceptron, B 256", build=lambda: small.mlp()),
        "embedding": Case(
            about="mean of embeddings (V 100,000, d 64), then linear, B 64, T 64",
            build=lambda: small.embedding_bag(),
        ),
        "tanh-cnn": Case(
            about="the small tanh CNN for 28 x 28 images, B 256", build=lambda: small.tanh_cnn()
        ),
        "tiny": Case(
            about="a perceptron that takes milliseconds, for tests",
            build=lambda: small.mlp(num_examples=6, widths=(12, 16, 4)),
        ),
        "tiny-cnn": Case(
            about="a convolutional network for tests",
            build=lambda: vision.wide_resnet(depth=10, widen=1, num_examples=4, size=8),
        ),
        "tiny-views": Case(
            about="the same, two views of each image",
            build=lambda: vision.with_views(depth=10, widen=1, num_examples=4, num_views=2, size=8),
        ),
        "tiny-gpt2": Case(
            about="a decoder for tests",
            build=lambda: text.gpt2(
                num_layers=2, num_examples=4, length=9, width=32, num_heads=4, vocabulary=61
            ),
            needs=_HF,
        ),
        "tiny-bert": Case(
            about="an encoder for tests",
            build=lambda: text.bert(
                train="all", num_layers=2, width=32, num_heads=4, length=9, num_examples=4
            ),
            needs=_HF,
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A small decoder's sizes, of which `benchmarks.growth` varies one."""

    batch: int = 8
    length: int = 128
    width: int = 128
    depth: int = 2
    vocabulary: int = 2000


# Axis -> the sizes it is tried at.
AXES: Final = MappingProxyType(
    {
        "batch": (4, 8, 16, 32, 64),
        "length": (64, 128, 256, 512, 1024),
        "width": (64, 128, 256, 512, 1024),
        "depth": (1, 2, 4, 8, 16),
        "vocabulary": (2000, 4000, 8000, 16000, 32000),
    }
)


def grown(axis: str, size: int) -> Case:
    """The small decoder with one of its sizes changed."""
    sizes = Sizes(**{axis: size})
    return Case(
        about=f"a small decoder with {axis} {size}",
        build=lambda: text.gpt2(
            num_layers=sizes.depth,
            num_examples=sizes.batch,
            length=sizes.length,
            width=sizes.width,
            num_heads=4,
            vocabulary=sizes.vocabulary,
        ),
        needs=_HF,
    )


def find(name: str) -> Case:
    """A case by name, or `grown:AXIS=SIZE`."""
    if name.startswith("grown:"):
        axis, _, size = name.removeprefix("grown:").partition("=")
        return grown(axis, int(size))
    return CASES[name]
