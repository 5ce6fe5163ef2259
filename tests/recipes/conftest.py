"""Solving for the noise takes a second: the same plan is solved once for all tests of this folder."""

from functools import cache

import pytest

from reticent.plan import _plan


@pytest.fixture(scope="session")
def solved_once():
    return cache(_plan.noise_multiplier_for)


@pytest.fixture(autouse=True)
def _solve_once(monkeypatch, solved_once):
    monkeypatch.setattr(_plan, "noise_multiplier_for", solved_once)
