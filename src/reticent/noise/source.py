"""Where Gaussian noise comes from: the protocol, and the cipher that is the default.

Room: noise. May import torch, `cryptography`, `reticent.errors`.

Shape letters (this file): P pairs of normals in a block.

Sources:
    [1] Box, Muller 1958, "A note on the generation of random normal deviates".
    [2] NIST SP 800-38A (AES in counter mode).
"""

import hashlib
import math
import os
from collections.abc import Sequence
from typing import NoReturn, Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from reticent.errors import ConfigError
from reticent.noise._keystream import KEY_BYTES, Keystream, refuse_copy

_PAIRS = 1 << 16  # normals are made in blocks of 2 * _PAIRS: about 3 MiB of temporaries


@runtime_checkable
class NoiseSource(Protocol):
    """Independent standard normals, never the same ones twice.

    `private` is True only if nobody can know or regenerate the numbers: a run whose source says
    False has no privacy guarantee, and its ledger and report must say so.
    """

    @property
    def private(self) -> bool:
        """Whether the noise is secret and unrepeatable."""
        ...

    def normal(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Fresh N(0, 1) draws of the given shape; dtype float32 or float64."""
        ...


class CipherNoise:
    """Standard normals from an AES-256 counter-mode keystream [2] by Box-Muller [1] in float64.

    Make one with `CipherNoise.fresh()` (private) or `CipherNoise.reproducible(seed)` (not private).

    Guarantee:
        A fresh source is keyed with 256 bits from the operating system (`os.urandom`), never from
        any seed the user set; to tell its output from independent normals is to break AES-256 (up to
        float64 rounding and tails cut at 9.3 standard deviations). Each byte of the keystream is
        used once: in one process by a counter that only grows, across processes by refusing copies,
        pickles and forks. The key is not stored in any Python object.

    Tested: distribution, independence of draws, steps, tensors and rows, key sensitivity to every
    bit, regeneration from user seeds, absence of the key from every artefact.
    """

    __slots__ = ("_keystream", "_private", "_rank")

    def __init__(self, keystream: Keystream, *, private: bool, rank: int = 0) -> None:
        self._keystream = keystream
        self._private = private
        self._rank = rank

    @classmethod
    def fresh(cls) -> "CipherNoise":
        """Make a private source: a new 256-bit key from the operating system."""
        return cls(Keystream(os.urandom(KEY_BYTES)), private=True)

    @classmethod
    def reproducible(cls, seed: int, *, start: int = 0, rank: int = 0) -> "CipherNoise":
        """Make a source that repeats: for tests and research only, without any privacy.

        Args:
            seed: any integer.
            start: where a resumed run goes on, e.g. its step; another `start` is an unrelated
                stream, so a resumed run does not add the noise of its first steps again.
            rank: of this process among several, each of which noises coordinates of its own.

        Raises:
            ConfigError[seed]: `seed`, `start` or `rank` is not an integer.
        """
        for name, value in (("seed", seed), ("start", start), ("rank", rank)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name} must be an integer, got {value!r}.", code="seed")
        text = f"reticent reproducible noise, not private: seed {seed}, start {start}"
        text += f", rank {rank}" if rank else ""
        return cls(Keystream(hashlib.sha256(text.encode()).digest()), private=False, rank=rank)

    @property
    def private(self) -> bool:
        """True for a fresh source, False for a reproducible one."""
        return self._private

    @property
    def rank(self) -> int:
        """Of a reproducible source: the process it is for. (A fresh source is like no other.)"""
        return self._rank

    @property
    def position(self) -> int:
        """Bytes of keystream used so far: 16 for each pair of normals."""
        return self._keystream.position

    def normal(
        self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Fresh independent N(0, 1) draws, made in float64 on the CPU and then cast and moved.

        Temporaries are bounded (a few MiB), whatever the shape.

        Args:
            shape: shape of the result; may hold zeros, or be empty for a scalar.
            dtype: torch.float32 or torch.float64.
            device: where the result lives.

        Raises:
            ConfigError[noise-dtype]: `dtype` is neither float32 nor float64. Half precision has so
                few values that single draws give the noiseless value away.
            StepError[noise-forked]: the source was made in another process.
        """
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"Noise is drawn in torch.float32 or torch.float64, not {dtype}. Add it in one of "
                "these and cast the sum afterwards.",
                code="noise-dtype",
            )
        out = torch.empty(tuple(shape), dtype=dtype)
        flat = out.view(-1)
        for start in range(0, flat.numel(), 2 * _PAIRS):
            block = flat[start : start + 2 * _PAIRS]
            pairs = (block.numel() + 1) // 2
            block.copy_(_box_muller(*self._words(pairs))[: block.numel()])
        return out.to(device)

    def _words(self, pairs: int) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"]]:
        """Two vectors of fresh uniform 64-bit words."""
        words = torch.empty(2 * pairs, dtype=torch.int64)
        self._keystream.read_into(words.numpy().data.cast("B"))
        return words[:pairs], words[pairs:]

    def __repr__(self) -> str:
        return f"CipherNoise(private={self._private})"

    def __reduce__(self) -> NoReturn:
        refuse_copy()


def _box_muller(
    radius_bits_P: Int64[Tensor, " P"], angle_bits_P: Int64[Tensor, " P"]
) -> Float64[Tensor, " 2*P"]:
    """Standard normals from uniform 64-bit words: r cos(a), r sin(a), r = sqrt(-2 ln u) [1].

    u = (k + 1) / 2^63 for a 63-bit k lies in (0, 1] and keeps float64's full relative precision
    near 0, where the tails are: |z| reaches sqrt(126 ln 2) = 9.35. The angle is uniform in
    [-pi, pi]. Overwrites `radius_bits_P`.
    """
    pairs = len(radius_bits_P)
    k = radius_bits_P.bitwise_and_(0x7FFF_FFFF_FFFF_FFFF)
    r = k.to(torch.float64).add_(1.0).mul_(2.0**-63).log_().mul_(-2.0).sqrt_()
    angle = angle_bits_P.to(torch.float64).mul_(math.pi * 2.0**-63)
    z = torch.empty(2 * pairs, dtype=torch.float64)
    torch.cos(angle, out=z[:pairs]).mul_(r)
    torch.sin(angle, out=z[pairs:]).mul_(r)
    return z
