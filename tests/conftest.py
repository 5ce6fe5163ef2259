"""What every test shares: hypothesis without deadlines (the first call of torch is slow), one thread."""

import os
import random

import pytest
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests are many and small
settings.register_profile("home", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "home")


@pytest.fixture
def seeded(monkeypatch):
    """The operating system's random bytes and torch's generator are the same in every run of the test.

    For what holds of nearly every draw and not of all: a score after training, say. Only in this process;
    never where a test is about randomness itself.
    """
    import torch

    known = random.Random(1)
    monkeypatch.setattr(os, "urandom", known.randbytes)
    monkeypatch.setattr(random, "_urandom", known.randbytes)  # of `secrets`, and so `np.random.default_rng()`
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield
