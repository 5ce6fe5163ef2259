"""The average of weights: its formula, once per update."""

import pytest
import torch

from reticent.errors import ConfigError
from reticent.train import Evaluation, SilentWatcher, TrainSettings, fit
from reticent.train._checkpoint import load_tensors
from reticent.train._ema import ema_decay, ema_start, ema_update
from tests.train.joint import cross_entropy, make_data, make_model, make_plan, make_private, weights_of


@pytest.mark.parametrize(("t", "decay"), [(0, 0.1), (1, 2 / 11), (9, 10 / 19), (100, 101 / 110)])
def test_the_decay_warms_up(t, decay):
    assert ema_decay(t, mu=0.9999) == pytest.approx(decay, abs=1e-15)


@pytest.mark.parametrize("t", [90, 10_000])
def test_the_decay_stops_at_mu(t):
    assert ema_decay(t, mu=0.9) == 0.9


@pytest.mark.parametrize(
    ("t", "decay"), [(-50, 0.0), (-1, 0.0), (0, 0.0), (1, 1 / 2), (9, 9 / 10), (100, 100 / 101)]
)
def test_polyaks_average_is_the_plain_mean(t, decay):
    assert ema_decay(t, mu="polyak") == pytest.approx(decay, abs=1e-15)


@pytest.mark.parametrize("kind", [0.99, "polyak"])
@pytest.mark.parametrize("start", [0, 5, 10, 50])
def test_an_average_that_starts_late_is_the_last_weights_until_then_and_never_nan(kind, start):
    average = ema_start({"w": torch.zeros(2)})
    seen = []
    for update in range(60):
        w = torch.full((2,), float(update + 1))
        ema_update(average, {"w": w}, t=update - start, mu=kind)
        assert bool(average["w"].isfinite().all())
        if update < start:
            assert torch.equal(average["w"], w)
        else:
            seen.append(update + 1)
        if update >= start and kind == "polyak":
            torch.testing.assert_close(average["w"], torch.full((2,), sum(seen) / len(seen)))
    assert float(average["w"][0]) < 60


@pytest.mark.parametrize(
    "settings",
    [
        {"ema": 1.0},
        {"ema": "mean"},
        {"ema_start": 3},
        {"ema": 0.9, "ema_start": -1},
        {"ema": "polyak", "polyak": True},
    ],
)
def test_an_average_that_means_nothing_is_refused(settings):
    with pytest.raises(ConfigError, match="ema"):
        TrainSettings(**settings)


def test_an_update_moves_the_average_by_one_minus_the_decay():
    average = ema_start({"w": torch.tensor([1.0, 2.0])})
    ema_update(average, {"w": torch.tensor([2.0, 0.0])}, t=1, mu=0.99)
    assert torch.allclose(average["w"], torch.tensor([1 + 9 / 11, 2 - 2 * 9 / 11]))


def test_half_precision_weights_are_averaged_in_single():
    average = ema_start({"w": torch.ones(3, dtype=torch.bfloat16)})
    for t in range(50):
        ema_update(average, {"w": torch.full((3,), 1.0078125, dtype=torch.bfloat16)}, t=t, mu=0.9999)
    assert average["w"].dtype == torch.float32
    assert bool((average["w"] > 1.0).all())


def test_a_run_averages_once_for_each_update_whatever_the_chunks(tmp_path):
    model, plan = make_model(), make_plan(num_steps=4)
    private = make_private(tmp_path, model=model, plan=plan, physical_batch_size=2)
    expected, seen = weights_of(model), []
    private.optimizer.register_step_post_hook(lambda *_: seen.append(weights_of(model)))
    fit(
        private,
        plan.batches(make_data()),
        loss_per_example=cross_entropy,
        folder=tmp_path,
        settings=TrainSettings(ema=0.99, polyak=True),
        watcher=SilentWatcher(),
    )
    mean = torch.stack(seen).double().mean(0).float()
    for t, weights in enumerate(seen):
        mu = min(0.99, (1 + t) / (10 + t))
        expected = mu * expected + (1 - mu) * weights
    saved, _ = load_tensors(tmp_path / "ema.safetensors")
    other = make_model(seed=1)
    other.load_state_dict(saved)
    assert torch.allclose(weights_of(other), expected, atol=1e-6)
    other.load_state_dict(load_tensors(tmp_path / "polyak.safetensors")[0])
    assert torch.allclose(weights_of(other), mean, atol=1e-6)
    assert not torch.allclose(mean, expected, atol=1e-4)
    other.load_state_dict(load_tensors(tmp_path / "weights.safetensors")[0])
    assert torch.equal(weights_of(other), weights_of(model))


def test_both_averages_and_the_last_weights_are_evaluated_by_one_run(tmp_path):
    model, plan = make_model(), make_plan(num_steps=4)
    private = make_private(tmp_path, model=model, plan=plan)
    done = fit(
        private,
        plan.batches(make_data()),
        loss_per_example=cross_entropy,
        folder=tmp_path,
        settings=TrainSettings(ema=0.5, polyak=True, ema_start=1),
        watcher=SilentWatcher(),
        evaluation=Evaluation(dataset=make_data(), scores=lambda m, rows: {"loss": cross_entropy(m, rows)}),
    )
    assert done.scores.keys() == {"last", "ema", "polyak"}
    for name, file in (("last", "weights"), ("ema", "ema"), ("polyak", "polyak")):
        other = make_model(seed=1)
        other.load_state_dict(load_tensors(tmp_path / f"{file}.safetensors")[0])
        with torch.no_grad():
            found = float(cross_entropy(other, make_data().tensors).mean())
        assert done.scores[name]["loss"] == pytest.approx(found, rel=1e-5)
    assert len({values["loss"] for values in done.scores.values()}) == 3
