"""Clipping in recipes: which settings there are, what they make, and that a run keeps them."""

import json

import pytest

from reticent.account.ledger import read_ledger
from reticent.clipping import AdaptiveClipping, AutomaticClipping, FlatClipping, PerLayerClipping
from reticent.data import load
from reticent.errors import ConfigError
from reticent.plan import Plan
from reticent.recipes import TrainingRecipe, go_on, plan_of, recipes, request, run
from reticent.recipes._clipping import clipping_of
from reticent.report import write_report
from reticent.train import _step as step_module

SHORT = ["num_steps=4", "checkpoint_every=2", "expected_batch_size=20", "max_norm=0.2"]


@pytest.fixture(scope="module")
def digits():
    return load("digits")


MADE = [
    ([], FlatClipping(max_norm=0.2)),
    (["clipping=flat"], FlatClipping(max_norm=0.2)),
    (["clipping=automatic"], AutomaticClipping(max_norm=0.2)),
    (["clipping=automatic", "stability=0.001"], AutomaticClipping(max_norm=0.2, stability=0.001)),
    (["clipping=per-layer"], PerLayerClipping(max_norm=0.2)),
    (["clipping=per-layer", "split=size"], PerLayerClipping(max_norm=0.2, split="size")),
    (["clipping=adaptive"], AdaptiveClipping(initial_max_norm=0.2)),
    (
        [
            "clipping=adaptive",
            "target_quantile=0.7",
            "clip_lr=0.3",
            "count_noise_multiplier=20",
            "adapt_per_layer=true",
        ],
        AdaptiveClipping(
            initial_max_norm=0.2,
            target_quantile=0.7,
            learning_rate=0.3,
            count_noise_multiplier=20,
            per_layer=True,
        ),
    ),
]


@pytest.mark.parametrize(("settings", "clipping"), MADE)
def test_settings_make_the_clipping(settings, clipping):
    asked = request("digits", [*SHORT, *settings])
    assert clipping_of(asked.config) == clipping
    assert plan_of(asked).clipping == clipping


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["clipping=peer-layer"],
            r"clipping: input should be 'flat', 'automatic', 'per-layer' or 'adaptive'",
        ),
        (["stability=0.1"], "stability is a setting of automatic clipping, and clipping is 'flat'"),
        (["clipping=automatic", "split=size"], "split is a setting of per-layer clipping"),
        (["clipping=per-layer", "split=half"], "split: input should be 'equal' or 'size'"),
        (["clip_lr=0.1", "target_quantile=0.2"], "2 problems.*target_quantile is.*clip_lr is"),
        (["clipping=adaptive", "target_quantile=1"], "target_quantile: input should be less than 1"),
        (["epsilon=inf", "clipping=adaptive"], "clipping would be ignored: epsilon = inf"),
        (["epsilon=inf", "show_norms=true"], "show_norms would be ignored: epsilon = inf"),
        (["clippings=flat"], "unknown setting 'clippings'. Did you mean 'clipping'"),
    ],
)
def test_a_setting_that_is_wrong_or_would_be_ignored_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        request("digits", settings)
    assert caught.value.code == "config"


def test_too_little_noise_on_the_count_is_refused_before_anything_is_made(tmp_path, digits):
    asked = request("digits", [*SHORT, "clipping=adaptive", "count_noise_multiplier=0.1"])
    with pytest.raises(ConfigError, match="must be above the plan's noise multiplier"):
        run(asked, out=tmp_path / "run", data=digits)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("settings", "clipping"), MADE[2:])
def test_a_run_of_every_kind_is_stopped_resumed_and_reported(
    tmp_path, digits, monkeypatch, settings, clipping
):
    class Stop(BaseException):
        pass

    real = step_module.PrivateStep._release
    monkeypatch.setattr(
        step_module.PrivateStep,
        "_release",
        lambda self, *given: real(self, *given) if self.num_steps < 3 else (_ for _ in ()).throw(Stop),
    )
    with pytest.raises(Stop):
        run(request("digits", [*SHORT, *settings]), out=tmp_path / "run", data=digits)
    monkeypatch.setattr(step_module.PrivateStep, "_release", real)
    result = go_on(tmp_path / "run", data=digits)
    assert (result["num_steps"], result["num_lost"]) == (4, 1)
    assert 0 < result["epsilon"] <= 3.0
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert Plan.from_dict(about["plan"]).clipping == clipping
    kind = about["plan"]["clipping"]["kind"]
    assert read_ledger(tmp_path / "run" / "ledger.jsonl").public["clipping"]["kind"] == kind
    page = write_report(tmp_path / "run").path.read_text(encoding="utf-8")
    words = {"automatic": "automatic: every example", "per-layer": "layer by layer; norm C = 0.2"}
    assert words.get(kind, "adaptive: from norm 0.2 on") in page


@pytest.mark.parametrize(
    ("edit", "named"),
    [({"clipping": "automatic"}, "clipping"), ({"target_quantile": 0.9}, "target_quantile")],
)
def test_a_run_does_not_go_on_with_another_clipping(tmp_path, digits, edit, named):
    run(request("digits", [*SHORT, "clipping=adaptive"]), out=tmp_path / "run", data=digits)
    path = tmp_path / "run" / "run.json"
    about = json.loads(path.read_text())
    about["config"] |= edit
    path.write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=f"contradicts itself or the ledger in: .*{named}") as caught:
        go_on(tmp_path / "run", data=digits)
    assert caught.value.code == "run-edited"


def test_shown_norms_are_marked_in_file_ledger_and_report(tmp_path, digits):
    run(request("digits", [*SHORT, "show_norms=true"]), out=tmp_path / "run", data=digits)
    assert "clip_fraction" in (tmp_path / "run" / "not-private.jsonl").read_text()
    assert read_ledger(tmp_path / "run" / "ledger.jsonl").public["not_private"] == ["norms"]
    told = write_report(tmp_path / "run").statement.warnings
    assert any("Norms of the examples' gradients were written" in warning for warning in told)


def test_every_training_recipe_has_the_clippings_settings():
    trained = [recipe for recipe in recipes().values() if isinstance(recipe, TrainingRecipe)]
    assert len(trained) > 10
    for recipe in trained:
        assert {"clipping", "stability", "split", "target_quantile", "show_norms"} <= set(
            recipe.config.model_fields
        )
