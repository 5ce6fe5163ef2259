"""Public seeds for public randomness: weights, dropout, augmentation. Never noise, never sampling.

Room: train. Imports nothing of ours.
"""

import hashlib


def mix_seed(seed: int, *labels: str | int) -> int:
    """A seed in [0, 2**63) for one purpose, from a run's seed and what the purpose is called.

    The same arguments give the same number on every machine, so that a resumed run draws what the
    uninterrupted one would have drawn.
    """
    text = "/".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
