"""DP-LAMB in whole runs: accumulation changes nothing, trust ratios are shown, runs go on."""

import json

import pytest
import torch

from reticent.clipping import FlatClipping
from reticent.optim import Lamb
from reticent.plan import Plan
from reticent.sample import FullBatchSampler
from reticent.train import Evaluation, TrainSettings, resume, train
from tests.train.joint import cross_entropy, make_data, make_model, make_plan


def scores(model, rows):
    return {"loss": cross_entropy(model, rows)}


def run(out, *, plan=None, **options):
    model = make_model()
    train(
        model,
        Lamb(model.parameters(), lr=0.05),
        plan=plan or make_plan(num_steps=4),
        dataset=make_data(),
        loss_per_example=cross_entropy,
        out=out,
        evaluation=Evaluation(dataset=make_data(seed=1), scores=scores),
        settings=TrainSettings(eval_every=2, checkpoint_every=2, ema=0.9),
        **options,
    )
    return model


def test_the_metrics_hold_a_trust_ratio_for_each_tensor(tmp_path):
    model = run(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shown = [line["trust_ratios"] for line in lines if line["weights"] == "last"]
    assert len(shown) == 2
    names = {name for name, _ in model.named_parameters()}
    assert all(ratios.keys() == names and min(ratios.values()) > 0 for ratios in shown)
    assert all("trust_ratios" not in line for line in lines if line["weights"] == "ema")


@pytest.mark.parametrize("rows_at_once", [1, 7, 40])
def test_a_full_batch_in_chunks_takes_the_same_step(tmp_path, rows_at_once):
    size = len(make_data())
    plan = Plan(
        sampler=FullBatchSampler(num_examples=size),
        num_steps=2,
        noise_multiplier=0.5,
        clipping=FlatClipping(max_norm=1.0),
        delta=1e-5,
        budget=None,
    )
    whole = run(tmp_path / "whole", plan=plan, physical_batch_size=size, noise_seed=3)
    parts = run(tmp_path / "parts", plan=plan, physical_batch_size=rows_at_once, noise_seed=3)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


class Stop(BaseException):
    """What stands for a kill."""


def test_a_stopped_run_goes_on_with_its_moments(tmp_path):
    model = make_model()
    optimizer = Lamb(model.parameters(), lr=0.05)

    def stop_at_the_third(opt, *_):
        if opt.state[next(model.parameters())]["step"] == 3:
            raise Stop

    optimizer.register_step_post_hook(stop_at_the_third)
    with pytest.raises(Stop):
        train(
            model,
            optimizer,
            plan=make_plan(num_steps=4, batch=60),
            dataset=make_data(),
            loss_per_example=cross_entropy,
            out=tmp_path / "run",
            settings=TrainSettings(checkpoint_every=2),
        )
    model = make_model(seed=3)
    optimizer = Lamb(model.parameters(), lr=0.05)
    done = resume(model, optimizer, dataset=make_data(), loss_per_example=cross_entropy, out=tmp_path / "run")
    assert done.num_steps == 4
    assert done.num_lost == 1
    assert optimizer.state[next(model.parameters())]["step"] == 3  # two of the checkpoint, one of its own
