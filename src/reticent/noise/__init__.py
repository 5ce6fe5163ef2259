"""Gaussian noise: secret, fresh, once for each coordinate and step.

Room: noise (floor 1). May import torch, `cryptography`, and floor 0.
"""

from reticent.noise.add import add_noise
from reticent.noise.source import CipherNoise, NoiseSource

__all__ = ["CipherNoise", "NoiseSource", "add_noise"]
