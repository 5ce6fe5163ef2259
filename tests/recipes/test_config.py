"""Settings: typed, complete, and refused with every problem at once."""

import math

import pytest

from reticent.errors import ConfigError
from reticent.recipes import DEFAULT_RECIPE, TrainingRecipe, plan_of, recipes, request
from reticent.recipes._config import parse_settings, restore_config


def test_the_default_recipe_is_fashion_mnist_at_epsilon_three():
    asked = request()
    assert DEFAULT_RECIPE == asked.recipe.name == "fashion-mnist"
    assert (asked.config.epsilon, asked.config.delta) == (3.0, 1e-5)
    assert asked.config.private


# The others plan in their own way, or from what a folder holds.
PLANNED = sorted(
    name
    for name, recipe in recipes().items()
    if isinstance(recipe, TrainingRecipe) and not name.startswith(("vision-", "text-"))
)


@pytest.mark.parametrize("name", PLANNED)
def test_every_recipes_defaults_make_a_plan_within_its_budget(name):
    asked = request(name)
    plan = plan_of(asked)
    assert plan.epsilon().epsilon <= asked.config.epsilon
    assert plan.num_steps == asked.config.num_steps
    assert plan.sampler.num_examples == asked.recipe.num_examples(asked.config)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("epsilon=2", 2),
        ("epsilon=inf", math.inf),
        ("delta=1e-6", 1e-6),
        ("lr=.5", 0.5),
        ("twin=true", True),
        ("twin=False", False),
        ("noise_seed=none", None),
        ("optimizer=adam", "adam"),
        ('optimizer="adam"', "adam"),
        ("noise-seed=3", 3),
        ("model = mlp ", "mlp"),
    ],
)
def test_values_have_the_type_they_look_like(text, value):
    (parsed,) = parse_settings([text]).values()
    assert parsed == value
    assert type(parsed) is type(value)


def test_texts_without_key_or_equals_sign_are_all_listed():
    with pytest.raises(ConfigError, match=r"2 problems.*--set 'twin'.*--set '=3'"):
        parse_settings(["twin", "=3", "lr=1"])


def test_a_misspelt_setting_is_named_with_what_was_meant():
    with pytest.raises(
        ConfigError, match=r"unknown setting 'epsillon'. Did you mean 'epsilon'\?.*\[config\]"
    ):
        request("digits", ["epsillon=2"])


def test_every_problem_is_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        request("digits", ["epsilon=-1", "delta=2", "num_steps=1.5", "lr=fast", "momentun=0.5", "twin=3"])
    for text in ("6 problems", "epsilon: ", "delta: ", "num_steps: ", "lr: ", "'momentum'", "twin: "):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "setting",
    [
        "epsilon=0",
        "epsilon=nan",
        "epsilon=-inf",
        "epsilon=true",
        "delta=0",
        "delta=1",
        "num_steps=0",
        "expected_batch_size=0",
        "expected_batch_size=1438",
        "max_norm=inf",
        "lr=0",
        "momentum=1",
        "optimizer=lbfgs",
        "ema=1",
        "seed=-1",
        "noise_seed=x",
        "physical_batch_size=0",
        "model=resnet",
    ],
)
def test_values_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=rf"{setting.split('=')[0]}: .*\[config\]"):
        request("digits", [setting])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["optimizer=adam", "momentum=0.5"], "momentum is a setting of sgd"),
        (["optimizer=adam", "nesterov=true"], "nesterov is sgd's momentum"),
        (["momentum=0", "nesterov=true"], "nesterov is sgd's momentum"),
        (["ema=polyak", "polyak=true"], "polyak would keep the average twice"),
        (["ema=0", "ema_start=2"], "ema_start would be ignored"),
        (["epsilon=inf", "max_norm=1"], "max_norm would be ignored"),
        (["epsilon=inf", "delta=1e-6"], "delta would be ignored"),
        (["twin_lr=1"], "twin_lr would be ignored"),
        (["epsilon=inf", "twin=true"], "twin"),
        (["parallel=pp"], "pipeline parallel is not supported.*pipeline-parallel"),
        (["parallel=tp", "compile=true"], "parallel = tp takes neither"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(settings, text):
    with pytest.raises(ConfigError, match=rf"{text}.*\[config\]"):
        request("digits", settings)


def test_without_privacy_the_learning_rate_is_the_twins_unless_set():
    assert request("digits", ["epsilon=inf"]).config.lr == request("digits").config.twin_lr
    assert request("digits", ["epsilon=inf", "lr=0.3"]).config.lr == 0.3


def test_what_is_not_private_says_so():
    assert not request("digits", ["epsilon=inf"]).config.private
    assert not request("digits", ["noise_seed=0"]).config.private
    assert request("digits", ["seed=0"]).config.private


def test_a_config_file_names_its_recipe_and_the_command_line_wins(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "digits"\nepsilon = 2.0\nlr = 0.25\noptimizer = "adam"\n')
    asked = request(str(path), ["epsilon=1"])
    assert asked.recipe.name == "digits"
    assert (asked.config.epsilon, asked.config.lr, asked.config.optimizer) == (1, 0.25, "adam")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("epsilon = ", "config-file"),
        ("epsilon = 2.0\n", "unknown-recipe"),
        ('recipe = "didgits"\n', "unknown-recipe"),
        ('recipe = "digits"\n[epsilon]\nx = 1\n', "config"),
        (None, "config-file"),
    ],
)
def test_a_bad_config_file_is_refused(tmp_path, text, code):
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=rf"\[{code}\]"):
        request(str(path))


def test_an_unknown_recipe_is_refused_with_what_was_meant():
    with pytest.raises(
        ConfigError, match=r"'digit'. Did you mean 'digits'\?.*fashion-mnist.*\[unknown-recipe\]"
    ):
        request("digit")


@pytest.mark.parametrize("settings", [[], ["epsilon=inf"], ["noise_seed=4", "optimizer=adam", "epsilon=1.5"]])
def test_settings_survive_the_run_file(settings):
    config = request("digits", settings).config
    assert restore_config(type(config), config.public_dict()) == config


def test_edited_settings_in_a_run_file_are_refused():
    config = request("digits").config
    with pytest.raises(ConfigError, match=r"num_steps: .*\[config\]"):
        restore_config(type(config), {**config.public_dict(), "num_steps": "many"})
