"""`method=auto`: it sees the public shape and the budget alone, and what it picks works."""

import inspect
import math
import statistics

import pytest

from reticent.errors import ConfigError
from reticent.recipes import describe, request, run
from reticent.recipes.features._auto import chosen_for
from reticent.recipes.features._config import CHOSEN_TOO, READ_BY, LastLayerConfig
from reticent.recipes.features._methods import PublicShape, resolved

SHAPES = [(1437, 64, 10), (32561, 104, 2), (50_000, 1280, 10), (1_281_167, 2048, 1000), (50, 5000, 2)]


def test_nothing_but_public_numbers_goes_in():
    assert list(inspect.signature(chosen_for).parameters) == [
        "num_examples", "dim", "num_classes", "epsilon", "delta",
    ]  # fmt: skip


@pytest.mark.parametrize(("num_examples", "dim", "num_classes"), SHAPES)
@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0, 8.0, 100.0, math.inf])
def test_its_choice_is_a_whole_set_of_settings(num_examples, dim, num_classes, epsilon):
    chosen = chosen_for(
        num_examples=num_examples, dim=dim, num_classes=num_classes, epsilon=epsilon, delta=1e-6
    )
    config = LastLayerConfig.model_validate(dict(chosen))
    assert all(config.method in READ_BY.get(name, (config.method,)) for name in chosen)
    assert config.lr is not None
    assert config.num_steps is not None
    assert 0.0 < config.lr < 4.0  # above, a step preconditioned by the second moments can overshoot
    assert 40 <= config.num_steps <= 120


def test_more_signal_never_goes_less_far():
    way = []
    for epsilon in (4.0, 8.0, 16.0, 1e3, math.inf):
        chosen = chosen_for(num_examples=1437, dim=64, num_classes=10, epsilon=epsilon, delta=1e-5)
        assert chosen["method"] == "fc"
        way.append(chosen["lr"] * chosen["num_steps"])
    assert way == sorted(way)


def test_the_mean_is_subtracted_where_its_own_noise_leaves_it_clear():
    centred = [
        chosen_for(num_examples=n, dim=d, num_classes=10, epsilon=1.0, delta=1e-5).get("centre")
        for n, d in ((50_000, 1280), (1437, 64), (300, 64))
    ]
    assert centred == ["private", "private", None]


@pytest.mark.parametrize("feature_norm", [0.01, 1.0, 30.0])
def test_its_intercept_and_clipping_norm_go_with_the_rows_norm(feature_norm):
    shape = PublicShape(num_examples=1437, dim=64, num_classes=10)
    config = resolved(LastLayerConfig(feature_norm=feature_norm), shape)
    assert math.isclose(config.intercept, 0.5 * feature_norm)
    assert config.max_norm is not None
    assert math.isclose(config.max_norm, math.hypot(feature_norm, config.intercept))


@pytest.mark.parametrize("setting", CHOSEN_TOO)
def test_what_it_chooses_nobody_else_may_set(setting):
    value = {"centre": "private", "centre_share": "0.1", "intercept": "1"}[setting]
    with pytest.raises(ConfigError, match=f"{setting} would be chosen by method=auto"):
        request("last-layer", ["method=auto", f"{setting}={value}"])


def test_its_mean_and_a_whitening_leave_some_budget():
    with pytest.raises(ConfigError, match="must leave some budget"):
        request("last-layer", ["method=auto", "whiten=private", "whiten_share=0.96"])


@pytest.mark.parametrize(("epsilon", "method"), [(1.0, "adam"), (8.0, "fc")])
def test_the_plan_says_what_was_chosen(epsilon, method):
    described = describe(request("last-layer", [f"epsilon={epsilon}"]))
    assert described["method"] == method
    assert described["epsilon"] <= epsilon


@pytest.mark.parametrize(("epsilon", "least"), [(1.0, 0.85), (8.0, 0.92)])
def test_on_digits_it_is_where_the_tuned_methods_are(tmp_path, epsilon, least, seeded):
    """Its own means are 0.90 and 0.95; a mean of three has spread 0.012."""
    found = [
        run(request("last-layer", [f"epsilon={epsilon}"]), out=tmp_path / str(k))["test_accuracy"]
        for k in range(3)
    ]
    assert statistics.fmean(found) > least


def test_without_privacy_it_finds_a_classifier_too(tmp_path):
    assert run(request("last-layer", ["epsilon=inf"]), out=tmp_path / "run")["test_accuracy"] > 0.93


@pytest.mark.parametrize("value", ["1e-7", "1e7", "nan", "inf"])
@pytest.mark.parametrize("setting", ["feature_norm", "max_norm", "intercept"])
def test_norms_that_float32_rounds_to_few_bits_are_refused(setting, value):
    with pytest.raises(ConfigError, match=rf"(?s){setting}.*(1e-06|0\.000001|1000000|finite).*\[config\]"):
        request("last-layer", ["method=sgd", f"{setting}={value}"])
