"""Faults around a run that are no crash of its own: a full disk, a clock that jumps, a second process."""

import errno
import os
import time

import pytest
import torch

from reticent.account.ledger import read_ledger
from reticent.errors import ReticentError
from reticent.report import verify_run
from reticent.train import TrainSettings, _checkpoint, resume, train
from tests.train.joint import cross_entropy, make_data, make_model, make_plan

NUM_STEPS = 6


def run(out, *, go_on=False, **options):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rest = {"dataset": make_data(), "loss_per_example": cross_entropy, "out": out, **options}
    if go_on:
        return resume(model, optimizer, **rest)
    settings = TrainSettings(checkpoint_every=2)
    return train(model, optimizer, plan=make_plan(num_steps=NUM_STEPS), settings=settings, **rest)


def full_disk(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_in_a_checkpoint_leaves_a_run_that_goes_on_with_its_steps_spent(
    tmp_path, monkeypatch
):
    calls = []
    written = _checkpoint.write_atomically

    def third_time(*args, **options):
        calls.append(1)
        return full_disk() if len(calls) == 3 else written(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(_checkpoint, "write_atomically", third_time)
        with pytest.raises((OSError, ReticentError), match="No space left"):
            run(tmp_path / "run")
    spent = read_ledger(tmp_path / "run" / "ledger.jsonl").num_steps
    assert 0 < spent < NUM_STEPS
    result = run(tmp_path / "run", go_on=True)
    assert result.num_steps == NUM_STEPS
    assert verify_run(tmp_path / "run").sound


def test_a_clock_that_runs_backwards_changes_nothing_that_is_counted(tmp_path, monkeypatch):
    hours = iter(range(10**6, 0, -1))
    for name in ("time", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: 3600.0 * next(hours))
    result = run(tmp_path / "run")
    monkeypatch.undo()
    assert result.num_steps == NUM_STEPS
    assert result.epsilon.epsilon == make_plan(num_steps=NUM_STEPS).epsilon().epsilon
    assert verify_run(tmp_path / "run").sound
