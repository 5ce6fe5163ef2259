"""Where a sampler's randomness comes from: as secret as the noise.

Room: sample. May import NumPy and `reticent.errors`.

Sources:
    [1] Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
"""

import hashlib
import os
import threading
from typing import NoReturn

import numpy as np

from reticent.errors import ConfigError, StepError

_KEY_BYTES, _COUNTER_BYTES = 16, 32  # Philox4x64's full key and full counter


class SampleStream:
    """Random generators for a sampler, a new one for each draw.

    Make one with `SampleStream.fresh()` (private) or `SampleStream.reproducible(seed)` (not private).

    Guarantee:
        A fresh stream holds no state at all: every draw gets a Philox4x64 generator [1] whose
        128-bit key and 256-bit starting counter were read from the operating system at that moment.
        So there is nothing that a training seed could fix, a checkpoint could leak, or a forked
        process or another rank could repeat.
    """

    __slots__ = ("_lock", "_next", "_seed")

    def __init__(self, seed: int | None, start: int) -> None:
        self._seed = seed
        self._next = start
        self._lock = threading.Lock()

    @classmethod
    def fresh(cls) -> "SampleStream":
        """Make a private stream, keyed by the operating system at each draw."""
        return cls(None, 0)

    @classmethod
    def reproducible(cls, seed: int, *, start: int = 0) -> "SampleStream":
        """Make a stream that repeats: for tests and research only, without any amplification.

        Args:
            seed: any integer.
            start: number of draws to skip, e.g. the step a resumed run goes on from: draw `start`
                of a stream that began at 0 is the first draw here.

        Raises:
            ConfigError[seed]: `seed` is not an integer, or `start` not an integer >= 0.
        """
        for name, value in (("seed", seed), ("start", start)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name} must be an integer, got {value!r}.", code="seed")
        if start < 0:
            raise ConfigError(f"start counts draws and must be >= 0, got {start}.", code="seed")
        return cls(seed, start)

    @property
    def private(self) -> bool:
        """True for a fresh stream, False for a reproducible one."""
        return self._seed is None

    def generator(self) -> np.random.Generator:
        """The generator for one draw; no two calls return related ones."""
        bits = self._bits()
        key = int.from_bytes(bits[:_KEY_BYTES], "little")
        counter = int.from_bytes(bits[_KEY_BYTES:], "little")
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def _bits(self) -> bytes:
        if self._seed is None:
            return os.urandom(_KEY_BYTES + _COUNTER_BYTES)
        with self._lock:
            draw = self._next
            self._next += 1
        text = f"reticent reproducible sampling, not private: seed {self._seed}, draw {draw}"
        return hashlib.sha384(text.encode()).digest()

    def __repr__(self) -> str:
        return f"SampleStream(private={self.private})"

    def __reduce__(self) -> NoReturn:
        raise StepError(
            "A sample stream cannot be copied, pickled or saved: which examples were drawn must "
            "stay unknown and must not repeat. Make a new one: SampleStream.fresh().",
            code="stream-copied",
        )
