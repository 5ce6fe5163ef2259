"""Batch normalisation is refused by name, and converted on request."""

import pytest
import torch
from torch import nn

import reticent as rt


def _net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 2)
    )


def _losses(model: nn.Module):
    return lambda x: model(x).square().sum(1)


def test_training_mode_is_refused_with_the_fix_in_the_message() -> None:
    model = _net()
    with pytest.raises(rt.errors.UnsupportedModel, match=r"BatchNorm2d at '1'.*reticent\.fix\(model\)"):
        rt.clipped_sum(model, _losses(model), torch.randn(4, 3, 8, 8), max_norm=1.0)


@pytest.mark.parametrize("mode", ["group-norm", "freeze"])
def test_the_fixed_copy_is_accepted_and_the_original_untouched(mode: str) -> None:
    model = _net()
    model(torch.randn(16, 3, 8, 8))  # some running statistics
    fixed = rt.fix(model, batch_norm=mode)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fixed.modules())
    got = rt.clipped_sum(fixed, _losses(fixed), torch.randn(4, 3, 8, 8), max_norm=1.0)
    assert bool((got.norms > 0).all())


def test_freezing_computes_what_eval_mode_computes_and_trains_neither_scale_nor_shift() -> None:
    model = _net().double()
    model(torch.randn(16, 3, 8, 8).double())
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2.0)
        model[1].bias.uniform_(-1.0, 1.0)
    fixed = rt.fix(model, batch_norm="freeze")
    x = torch.randn(5, 3, 8, 8).double()
    torch.testing.assert_close(fixed.train()(x), model.eval()(x), rtol=1e-12, atol=1e-12)
    assert not [n for n, _ in fixed.named_parameters() if n.startswith("1.")]


def test_group_norm_takes_over_scale_and_shift() -> None:
    model = _net()
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2.0)
    fixed = rt.fix(model)
    assert isinstance(fixed[1], nn.GroupNorm)
    assert fixed[1].num_groups == 16
    assert torch.equal(fixed[1].weight, model[1].weight)


def test_one_dimensional_features_are_not_erased() -> None:
    fixed = rt.fix(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)))
    assert fixed(torch.randn(3, 5)).abs().min() > 0


def test_a_single_channel_and_a_layer_without_statistics_are_refused() -> None:
    with pytest.raises(rt.errors.UnsupportedModel, match="one channel"):
        rt.fix(nn.Sequential(nn.BatchNorm1d(1)))
    with pytest.raises(rt.errors.UnsupportedModel, match="no running statistics"):
        rt.fix(nn.BatchNorm2d(4, track_running_stats=False), batch_norm="freeze")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(rt.errors.ConfigError, match="group-norm"):
        rt.fix(_net(), batch_norm="layer-norm")  # type: ignore[arg-type]
