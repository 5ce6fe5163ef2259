"""The kinds of clipping: what they refuse, what each group gets, what one unit can do to the sum."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reticent.clipping import (
    AdaptiveClipping,
    AutomaticClipping,
    FlatClipping,
    GroupedClipping,
    PerLayerClipping,
    groups,
    module_patterns,
    sensitivity,
)
from reticent.errors import ConfigError
from tests.train.modes import ModeEngine, clipped_one

SIZES = {"0.weight": 30, "0.bias": 5, "2.weight": 15, "2.bias": 3}


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (lambda: FlatClipping(max_norm=0.0), "clip-norm", "got 0.0"),
        (lambda: AutomaticClipping(max_norm=math.inf), "clip-norm", "got inf"),
        (lambda: AutomaticClipping(stability=-0.1), "clip-stability", "got -0.1"),
        (lambda: AutomaticClipping(stability=math.nan), "clip-stability", "got nan"),
        (lambda: PerLayerClipping(max_norm="1"), "clip-norm", "got '1'"),
        (lambda: PerLayerClipping(max_norm=1.0, split="even"), "clip-split", "got 'even'"),
        (lambda: GroupedClipping(max_norms=()), "clip-groups", "must be a tuple"),
        (lambda: GroupedClipping(max_norms=[("*", 1.0)]), "clip-groups", "must be a tuple"),
        (lambda: GroupedClipping(max_norms=(("*", 1.0), ("*", 2.0))), "clip-groups", "pattern twice"),
        (lambda: GroupedClipping(max_norms=(("*", -1.0),)), "clip-norm", "the norm of '\\*'"),
        (lambda: AdaptiveClipping(initial_max_norm=0), "clip-norm", "initial_max_norm"),
        (lambda: AdaptiveClipping(initial_max_norm=2.0, max_norm=1.0), "clip-norm", "in order"),
        (lambda: AdaptiveClipping(initial_max_norm=1, target_quantile=1.0), "clip-adaptive", "quantile"),
        (lambda: AdaptiveClipping(initial_max_norm=1, learning_rate=0), "clip-adaptive", "learning_rate"),
        (lambda: AdaptiveClipping(initial_max_norm=1, count_noise_multiplier=-1), "clip-adaptive", "got -1"),
        (lambda: AdaptiveClipping(initial_max_norm=1, per_layer=1), "clip-adaptive", "per_layer"),
    ],
)
def test_a_wrong_setting_is_refused(make, code, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert caught.value.code == code


def test_a_layer_gets_an_equal_share_of_the_squared_norm_or_one_by_size():
    equal = groups(PerLayerClipping(max_norm=2.0), SIZES)
    assert [group.parameters for group in equal] == [("0.weight", "0.bias"), ("2.weight", "2.bias")]
    assert [group.max_norm for group in equal] == pytest.approx([math.sqrt(2)] * 2)
    by_size = groups(PerLayerClipping(max_norm=2.0, split="size"), SIZES)
    assert [g.max_norm for g in by_size] == pytest.approx([2 * math.sqrt(35 / 53), 2 * math.sqrt(18 / 53)])


@given(
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=40),
    max_norm=st.floats(1e-6, 1e6),
    split=st.sampled_from(["equal", "size"]),
)
def test_the_layers_norms_never_exceed_the_whole(sizes, max_norm, split):
    clipping = PerLayerClipping(max_norm=max_norm, split=split)
    split_up = groups(clipping, {f"{i}.weight": size for i, size in enumerate(sizes)})
    whole = math.sqrt(math.fsum(group.max_norm**2 for group in split_up))
    assert max_norm * (1 - 1e-12) <= whole <= sensitivity(clipping)


def test_a_parameter_belongs_to_the_module_that_owns_it_and_not_to_one_around_it():
    names = ["scale", "block.gain", "block.inner.weight", "block.inner.bias", "block[0].weight"]
    owned = groups(PerLayerClipping(max_norm=1.0), dict.fromkeys(names, 4))
    assert {group.parameters for group in owned} == {
        ("scale",),
        ("block.gain",),
        ("block.inner.weight", "block.inner.bias"),
        ("block[0].weight",),
    }
    assert module_patterns(names)[-1] == "*"


def test_the_first_pattern_that_matches_takes_a_parameter():
    clipping = GroupedClipping(max_norms=(("2.*", 0.3), ("*.bias", 0.4), ("*", 1.2)))
    taken = groups(clipping, SIZES)
    assert [group.parameters for group in taken] == [("2.weight", "2.bias"), ("0.bias",), ("0.weight",)]
    assert sensitivity(clipping) == pytest.approx(1.3)
    assert sensitivity(clipping) >= math.sqrt(0.3**2 + 0.4**2 + 1.2**2)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((("0.*", 1.0),), r"No group of max_norms takes .*'2\.weight', '2\.bias'"),
        ((("*", 1.0), ("0.*", 1.0)), r"take no trainable parameter: '0\.\*'"),
        ((("*", 1.0), ("Head", 1.0)), "take no trainable parameter: 'Head'"),
    ],
)
def test_a_parameter_without_a_group_and_a_group_without_a_parameter_are_refused(pairs, message):
    with pytest.raises(ConfigError, match=message) as caught:
        groups(GroupedClipping(max_norms=pairs), SIZES)
    assert caught.value.code == "clip-groups"


def test_adaptive_clipping_begins_with_its_first_norm():
    assert sensitivity(AdaptiveClipping(initial_max_norm=0.7, per_layer=True)) == 0.7


RECORDS = [
    FlatClipping(max_norm=0.7),
    AutomaticClipping(max_norm=0.7),
    AutomaticClipping(max_norm=0.7, stability=1e-4),
    PerLayerClipping(max_norm=0.7),
    PerLayerClipping(max_norm=0.7, split="size"),
    GroupedClipping(max_norms=(("2.*", 0.3), ("*", 0.4))),
    GroupedClipping(max_norms=(("*", 0.7),)),
]


@pytest.mark.parametrize("clipping", RECORDS, ids=repr)
@settings(max_examples=30)
@given(scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]), seed=st.integers(0, 2**31))
def test_no_unit_moves_the_sum_beyond_the_stated_sensitivity(clipping, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    grads = {
        name: scale * torch.randn(size, generator=generator, dtype=torch.float64)
        for name, size in SIZES.items()
    }
    parts, _ = clipped_one(grads, clipping)
    moved = math.sqrt(sum(float(g.square().sum()) for part, _ in parts.values() for g in part.values()))
    assert moved <= sensitivity(clipping) * (1 + 1e-12)
    if scale == 1e4:  # long gradients reach the bound, or the test could not fail
        assert moved >= sensitivity(clipping) * 0.9999


@pytest.mark.parametrize("clipping", RECORDS, ids=repr)
def test_the_groups_are_those_of_the_oracle(clipping):
    if not isinstance(clipping, PerLayerClipping | GroupedClipping):
        return
    grads = {name: torch.ones(size, dtype=torch.float64) for name, size in SIZES.items()}
    theirs = {names: norm for names, (_, norm) in clipped_one(grads, clipping)[0].items()}
    assert {group.parameters for group in groups(clipping, SIZES)} == set(theirs)


def test_a_model_with_groups_runs_in_the_double():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    engine = ModeEngine(model, clipping=PerLayerClipping(max_norm=0.1))
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    result = engine.clipped_sum(lambda rows: 100 * model(rows).square().sum(1), x)
    assert result.group_norms.shape == (4, 2)
    assert torch.allclose(result.group_norms.square().sum(1).sqrt(), result.norms)
