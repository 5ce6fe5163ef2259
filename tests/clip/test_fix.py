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
    assert fixed(torch.randn(3, 5)).abs().max() > 0.5  # zeros come out as rounding, not as zeros


def test_a_single_channel_and_a_layer_without_statistics_are_refused() -> None:
    with pytest.raises(rt.errors.UnsupportedModel, match="one channel"):
        rt.fix(nn.Sequential(nn.BatchNorm1d(1)))
    with pytest.raises(rt.errors.UnsupportedModel, match="no running statistics"):
        rt.fix(nn.BatchNorm2d(4, track_running_stats=False), batch_norm="freeze")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(rt.errors.ConfigError, match="group-norm"):
        rt.fix(_net(), batch_norm="layer-norm")  # type: ignore[arg-type]


class NormThenAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: `drop` and `act` behind the normalisation, in one forward."""

    def __init__(self, channels: int, act: nn.Module, drop: nn.Module | None = None, **more: bool) -> None:
        super().__init__(channels, **more)
        self.drop, self.act = drop or nn.Identity(), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.act(self.drop(super().forward(x)))
        weight, bias = self.weight, self.bias  # written out, as theirs is
        y = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, weight, bias, self.running_mean is None, 0.0, self.eps
        )
        return self.act(self.drop(y))


class SyncNormThenAct(nn.SyncBatchNorm):
    """As timm's SyncBatchNormAct."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


class ActThenNorm(NormThenAct):
    """The same attributes in another order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.BatchNorm2d.forward(self, self.drop(self.act(x)))


class Scaled(NormThenAct):
    """A gain of 1, which shows only once it is another."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels, act)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.gain


class ChannelsLast(nn.BatchNorm1d):
    """A forward of its own, and no attributes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mT).mT


class Renamed(nn.BatchNorm2d):
    """torch's forward under another name."""


def _seen(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The model with statistics of x, and other scales and shifts than 1 and 0."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(-2.0, 2.0)
                module.bias.uniform_(-1.0, 1.0)
        model.train()(x)
    return model


@pytest.mark.parametrize(
    "layer",
    [
        lambda: NormThenAct(8, nn.ReLU(inplace=True)),
        lambda: NormThenAct(8, nn.PReLU(8), nn.Dropout(0.5)),
        lambda: NormThenAct(8, nn.Identity(), affine=False),
        lambda: SyncNormThenAct(8, nn.SiLU()),
        lambda: Renamed(8),
        lambda: nn.SyncBatchNorm(8),
    ],
)
def test_freezing_keeps_what_a_layer_runs_behind_its_normalisation(layer) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer(), nn.Flatten(), nn.Linear(8 * 36, 2)).double()
    _seen(model, torch.randn(16, 3, 8, 8).double())
    state = torch.get_rng_state()
    fixed = rt.fix(model, batch_norm="freeze")
    assert torch.equal(torch.get_rng_state(), state)  # checks draw nothing that first weights would miss
    assert fixed[1].training and not any(isinstance(m, nn.BatchNorm2d) for m in fixed.modules())
    x = torch.randn(5, 3, 8, 8).double()
    torch.testing.assert_close(fixed.eval()(x), model.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tracked", [True, False])
def test_group_norm_keeps_the_activation(tracked: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        NormThenAct(32, nn.ReLU(inplace=True), nn.Dropout(0.5), track_running_stats=tracked),
        nn.Flatten(),
        nn.Linear(32 * 36, 2),
    )
    _seen(model, torch.randn(16, 3, 8, 8))
    fixed = rt.fix(model)
    norm, drop, act = fixed[1]
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == 16
    assert torch.equal(norm.weight, model[1].weight)
    assert isinstance(drop, nn.Dropout) and isinstance(act, nn.ReLU)
    fixed.eval()
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(fixed[1](fixed[0](x)), torch.relu(norm(fixed[0](x))))
    got = rt.clipped_sum(fixed, _losses(fixed), x, max_norm=1.0)
    assert bool((got.norms > 0).all()) and "1.norm.weight" in got.total


def _own_forward(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize("mode", ["group-norm", "freeze"])
@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda: ChannelsLast(4), "ChannelsLast"),
        (lambda: ActThenNorm(4, nn.ReLU()), "ActThenNorm"),
        (lambda: Scaled(4, nn.ReLU()), "Scaled"),
        (lambda: _own_forward(nn.BatchNorm2d(4)), "BatchNorm2d"),
    ],
)
def test_a_layer_that_does_something_else_is_refused_by_name(layer, name: str, mode: str) -> None:
    with pytest.raises(rt.errors.UnsupportedModel, match=rf"{name} at '1' has a forward of its own") as e:
        rt.fix(nn.Sequential(nn.Linear(3, 4), layer()), batch_norm=mode)
    assert e.value.code == "batch-norm"


@pytest.mark.parametrize("mode", ["group-norm", "freeze"])
def test_a_lazy_layer_is_converted_once_it_knows_its_channels(mode: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(rt.errors.UnsupportedModel, match=r"LazyBatchNorm2d at '1'.*number of channels"):
        rt.fix(model, batch_norm=mode)
    model(torch.randn(2, 3, 8, 8))
    assert rt.fix(model, batch_norm=mode)(torch.randn(2, 3, 8, 8)).shape == (2, 4, 6, 6)


def test_only_shapes_of_a_model_without_numbers_are_converted() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), NormThenAct(8, nn.ReLU()))
        fixed = rt.fix(model, batch_norm="freeze")
        assert fixed(torch.empty(2, 3, 8, 8)).shape == (2, 8, 6, 6)


def test_synchronised_batch_normalisation_of_vectors_is_not_erased() -> None:
    fixed = rt.fix(nn.Sequential(nn.Linear(5, 4), nn.SyncBatchNorm(4)))
    assert fixed(torch.randn(3, 5)).abs().max() > 0.5  # zeros come out as rounding, not as zeros
