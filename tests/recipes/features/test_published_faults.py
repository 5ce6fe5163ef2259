"""Faults of published code for private last layers, each planted: the check that finds it, and that it can.

The fifth, one noise for all classes and steps, is in `test_last_layer.py`.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from reticent.account.ledger import read_run_ledger
from reticent.recipes import request, run
from reticent.recipes.features import _stage_run as stage_run
from reticent.recipes.features import _stages as stages
from reticent.recipes.features._config import LastLayerConfig
from reticent.recipes.features._methods import PublicShape, make_method
from reticent.recipes.features._sources import Features, Split
from reticent.recipes.features._stages import Released

N, D, K = 300, 5, 2


def features(*, train_label=0, test_label=1):
    """All training rows of one class, all test rows of another."""
    x = np.random.default_rng(0).uniform(0.5, 1.0, size=(N + 40, D)).astype(np.float32)
    return Features(
        train=Split(x[:N], np.full(N, train_label)),
        test=Split(x[N:], np.full(40, test_label)),
        shape=PublicShape(num_examples=N, dim=D, num_classes=K),
        about={"name": "none", "fingerprint": {}},
    )


def train(out, *settings, data=None):
    return run(request("last-layer", ["epsilon=8", *settings]), out=out, data=data or features())


def adam_weights(gradients, *, lr, keeps_state):
    """Kingma and Ba's Algorithm 1, or the published code's: fresh moments at each step."""
    weight, m, v = torch.zeros(K, D, dtype=torch.float64), 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        if not keeps_state:
            m, v, t = 0.0, 0.0, 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        weight -= lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return weight


def test_adam_keeps_its_state():
    config = LastLayerConfig(method="adam", num_steps=3, lr=0.1)
    method = make_method(config, PublicShape(num_examples=1, dim=D, num_classes=K))
    (descend,) = method.stages
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(K, D, dtype=torch.float64, generator=generator) for _ in range(3)]
    for g in gradients:
        descend.apply(method.head, Released(values={"gradient": g}, noise_std={}, num_examples=1.0))
    found = method.head.weight.detach()
    torch.testing.assert_close(found, adam_weights(gradients, lr=0.1, keeps_state=True))
    assert not torch.allclose(found, adam_weights(gradients, lr=0.1, keeps_state=False), rtol=0.1)


def updates_and_entries(out, monkeypatch):
    """How often the weights of a run moved, and how many steps its ledger has."""
    moved, step = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (moved.append(None), step(self))[1])
    train(out, "method=sgd", "num_steps=7")
    return len(moved), read_run_ledger(out).num_steps


def test_there_is_no_update_that_the_ledger_does_not_count(tmp_path, monkeypatch):
    assert updates_and_entries(tmp_path / "run", monkeypatch) == (7, 7)


def test_updates_beyond_the_ledger_would_be_found(tmp_path, monkeypatch):
    once = stages.Descend.apply
    monkeypatch.setattr(stages.Descend, "apply", lambda *a: (once(*a), once(*a))[1])
    updates, entries = updates_and_entries(tmp_path / "run", monkeypatch)
    assert updates == 2 * entries


def rows_seen(out, monkeypatch, blocks=None):
    """How often each row entered each pass of a run, in blocks that do not divide their number."""
    passes, original = [], blocks or stage_run.raw_blocks

    def spy(split, *, block_rows, indices):
        passes.append(np.zeros(N, dtype=int))
        places = {row.tobytes(): place for place, row in enumerate(np.asarray(split.x))}
        for x, y in original(split, block_rows=64, indices=indices):
            for row in x.numpy():
                passes[-1][places[row.tobytes()]] += 1
            yield x, y

    monkeypatch.setattr(stage_run, "raw_blocks", spy)
    train(out, "method=fc", "num_steps=2")
    return np.array(passes)


def test_every_row_is_in_every_sum_once(tmp_path, monkeypatch):
    seen = rows_seen(tmp_path / "run", monkeypatch)
    assert seen.shape == (3, N)
    assert (seen == 1).all()


def test_rows_that_fill_the_last_block_would_be_found(tmp_path, monkeypatch):
    def repeating(split, *, block_rows, indices):
        yield from stage_run_blocks(split, block_rows=block_rows, indices=indices)
        x, y = torch.from_numpy(split.x[: -N % block_rows]), torch.from_numpy(split.y[: -N % block_rows])
        yield x.clone(), y

    stage_run_blocks = stage_run.raw_blocks
    assert rows_seen(tmp_path / "run", monkeypatch, repeating).max() == 2


@pytest.mark.parametrize(("planted", "accuracy"), [(False, 0.0), (True, 1.0)])
def test_scores_are_of_test_rows_and_not_of_training_rows(tmp_path, planted, accuracy):
    data = features()
    data = replace(data, test=data.train) if planted else data
    assert train(tmp_path / "run", "method=least-squares", data=data)["test_accuracy"] == accuracy
