"""Sweeps whose trials run one after the other in this process: fast, and failures can be planted."""

import pytest

from reticent.sweep import _choose, _run, _simulations
from reticent.sweep._trial import quietly


@pytest.fixture
def in_process(monkeypatch):
    """Run trials here; returns the list of indices in the order they ran."""
    ran = []

    def run_all(recipe, trials, *, jobs, threads, done):
        for trial in trials:
            ran.append(trial.index)
            try:
                quietly(recipe, trial, threads)
            except SystemExit:
                pass
            done(trial)

    monkeypatch.setattr(_run, "run_all", run_all)
    monkeypatch.setattr(_choose, "run_all", run_all)
    monkeypatch.setattr(_simulations, "run_all", run_all)
    return ran
