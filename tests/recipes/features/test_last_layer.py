"""The recipe `last-layer`: what it releases, what its ledger says, and how it ends."""

import json
import math

import numpy as np
import pytest
import torch

from reticent.account.ledger import read_run_ledger
from reticent.errors import CheckpointError, ConfigError, DataError, LedgerError
from reticent.noise import CipherNoise
from reticent.recipes import describe, go_on, request, run
from reticent.recipes.features import _stage_run as stage_run
from reticent.recipes.features._config import LastLayerConfig
from reticent.recipes.features._methods import PublicShape, make_method
from reticent.recipes.features._sources import Features, load_features
from reticent.recipes.features._store import Split
from reticent.recipes.features.last_layer import fit_plain
from reticent.train import load_tensors
from tests.recipes.features.test_store import FINGERPRINT, fill
from tests.recipes.features.test_sums import SameAtEveryStep, SameForEveryRow, independent

METHODS = ("one-step", "sgd", "adam", "lamb", "least-squares", "newton", "fc")


@pytest.fixture(scope="module")
def digits():
    return load_features("digits", report=lambda text: None, progress=False)


def toy(num_examples=400, dim=6, num_classes=3, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(num_classes, size=num_examples)
    x = np.float32(generator.normal(size=(num_examples, dim)) + 2.0 * np.eye(num_classes, dim)[y])
    split = Split(x, y)
    shape = PublicShape(num_examples=num_examples, dim=dim, num_classes=num_classes)
    return Features(train=split, test=split, shape=shape, about={"name": "toy", "fingerprint": {}})


def train(data, out, *settings):
    return run(request("last-layer", list(settings)), out=out, data=data)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_within_its_budget(tmp_path, digits, method, seeded):
    result = train(digits, tmp_path / "run", f"method={method}", "epsilon=4")
    assert result["private"] is True
    assert 3.99 < result["epsilon"] <= 4.0
    assert result["neighbouring_relation"] == "zero-out-one"
    assert result["test_accuracy"] > 0.72
    view = read_run_ledger(tmp_path / "run")
    assert view.num_steps == view.planned_steps == result["num_steps"]
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert go_on(tmp_path / "run", data=digits) == result  # over: left as it is


def test_accuracy_of_one_step_does_not_depend_on_the_learning_rate(tmp_path, digits):
    found = {
        train(digits, tmp_path / f"{k}", "method=one-step", f"lr={lr}", "noise_seed=3")["test_accuracy"]
        for k, lr in enumerate(("1e-6", "1.0", "1e4"))
    }
    assert len(found) == 1


def test_a_near_zero_start_is_the_zero_start_to_all_that_can_be_seen(tmp_path, digits):
    a, b = (
        train(digits, tmp_path / init, "method=one-step", f"init={init}", "noise_seed=3")
        for init in ("zero", "near-zero")
    )
    assert abs(a["test_accuracy"] - b["test_accuracy"]) <= 1 / 360


@pytest.mark.parametrize("class_weight", ["none", "2.0"])
def test_without_noise_least_squares_is_exact(tmp_path, class_weight):
    data = toy()
    settings = ["method=least-squares", "epsilon=inf", "reg=0", "intercept=0.5"]
    settings += [] if class_weight == "none" else [f"class_weight={class_weight}"]
    train(data, tmp_path / "run", *settings)
    x = np.float64(data.train.x)
    x = np.concatenate([x / np.linalg.norm(x, axis=1, keepdims=True), np.full((len(x), 1), 0.5)], axis=1)
    target = np.eye(3)[data.train.y]
    if class_weight == "none":
        expected = np.linalg.lstsq(x, target, rcond=None)[0].T
    else:  # weighted: a class's own rows count 1 + alpha, the others alpha, for targets 1 / (1 + alpha)
        rows = []
        for k in range(3):
            root = np.sqrt(2.0 + target[:, k])
            rows.append(np.linalg.lstsq(x * root[:, None], target[:, k] / root, rcond=None)[0])
        expected = np.stack(rows)
    found = load_tensors(tmp_path / "run" / "weights.safetensors")[0]["weight"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings", [("method=newton", "num_steps=8"), ("method=fc", "num_steps=60", "lr=2.0")]
)
def test_without_noise_newton_and_fc_reach_logistic_regression(tmp_path, settings):
    data = toy()
    train(data, tmp_path / "run", *settings, "epsilon=inf", "intercept=1.0", "reg=0.001")
    expected = fit_plain(data)
    found = load_tensors(tmp_path / "run" / "weights.safetensors")[0]["weight"]
    # Softmax weights are only fixed up to a vector common to all classes.
    centred = [w - w.mean(0) for w in (found, expected.weight.detach())]
    scale = float(centred[1].abs().max())
    assert float((centred[0] - centred[1]).abs().max()) < 0.05 * scale


# Noise of one full-batch step (Balle and Wang 2018), as the seed's table has it.
SIGMAS = [
    (1e-6, {0.5: 8.0576, 1: 4.2247, 2: 2.2305, 3: 1.5439, 4: 1.1935, 6: 0.8359, 8: 0.6529, 10: 0.5411}),
    (8e-7, {0.5: 8.1520, 1: 4.2703, 2: 2.2524, 3: 1.5581, 4: 1.2040, 6: 0.8426, 8: 0.6578, 10: 0.5449}),
    (1e-5, {0.5: 7.0318, 1: 3.7306, 2: 1.9938, 3: 1.3906, 4: 1.0812, 6: 0.7636, 8: 0.6002, 10: 0.4999}),
]


@pytest.mark.parametrize(("delta", "expected"), SIGMAS)
def test_noise_of_one_step_is_the_table_s(delta, expected):
    for epsilon, sigma in expected.items():
        config = LastLayerConfig(method="one-step", epsilon=float(epsilon), delta=delta)
        plan = make_method(config, PublicShape(num_examples=100, dim=3, num_classes=2)).plan
        assert sigma - 5e-5 <= plan.stages[0].noise_multiplier <= sigma + 1e-3


def test_parts_and_steps_share_the_budget_exactly():
    """At epsilon 8 and T = 10, DP-FC needs sqrt(11) times the noise of one step: 1.9907."""
    shape = PublicShape(num_examples=100, dim=3, num_classes=2)
    one = make_method(LastLayerConfig(method="one-step", epsilon=8.0), shape).plan.stages[0].noise_multiplier
    config = LastLayerConfig(method="fc", epsilon=8.0, gram_share=1 / 11, num_steps=10)
    gram, steps = make_method(config, shape).plan.stages
    for stage in (gram, steps):
        assert math.isclose(stage.noise_multiplier, one * math.sqrt(11), rel_tol=1e-5)
    assert abs(steps.noise_multiplier - 1.9907) < 1e-3


@pytest.mark.parametrize("sampled", [False, True])
def test_a_private_mean_and_whitening_are_releases_of_their_own(tmp_path, digits, sampled):
    settings = ["method=sgd", "num_steps=3", "lr=2.0", "centre=private", "whiten=private", "epsilon=2"]
    settings += ["expected_batch_size=300"] if sampled else ["intercept=0.5"]
    result = train(digits, tmp_path / "run", *settings)
    assert result["epsilon"] <= 2.0
    mechanisms = read_run_ledger(tmp_path / "run").segments()
    assert [count for _, count in mechanisms] == [1, 1, 3]
    (centre, _), (whiten, _), (step, _) = mechanisms
    assert math.isclose(
        centre.noise_multiplier / whiten.noise_multiplier, math.sqrt(0.5 / 0.05), rel_tol=1e-4
    )
    assert step.sampling_prob == (300 / 1437 if sampled else 1.0)
    assert [*map(str, {m.scheme for m, _ in mechanisms[:2]})] == ["full-batch"]


def test_describe_spends_nothing_and_says_what_would_be_released():
    described = describe(request("last-layer", ["method=fc", "num_steps=5", "epsilon=1"]))
    assert described["epsilon"] <= 1.0
    assert [stage["name"] for stage in described["stages"]] == ["precondition", "fc"]
    assert described["num_steps"] == 6
    assert described["method"] == "fc"


def test_features_from_a_store(tmp_path):
    fill(tmp_path / "store")
    asked = request("last-layer", [f"features={tmp_path / 'store'}", "method=one-step", "epsilon=5"])
    result = run(asked, out=tmp_path / "run")
    assert 0 <= result["test_accuracy"] <= 1
    assert 0 <= result["test_auc"] <= 1
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["data"]["fingerprint"]["model"] == "m"
    assert FINGERPRINT.data_sha256 not in json.dumps(about)  # nothing computed from private rows is in it


def released_noise(out, monkeypatch, method):
    """What a whole run releases from rows that all count as absent: its noise alone, two steps of it."""
    seen, original = [], stage_run.unscaled

    def spy(noised, statistics):
        seen.append(original(noised, statistics)["gradient"])
        return original(noised, statistics)

    monkeypatch.setattr(stage_run, "unscaled", spy)
    rows = Split(np.full((5, 4000), np.nan, dtype=np.float32), np.arange(5) % 4)
    public = Split(np.ones((4, 4000), dtype=np.float32), np.arange(4))
    shape = PublicShape(num_examples=5, dim=4000, num_classes=4)
    data = Features(train=rows, test=public, shape=shape, about={"name": "none", "fingerprint": {}})
    train(data, out, f"method={method}", "num_steps=2")
    return seen


@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_a_run_s_noise_is_independent_over_classes_and_steps(tmp_path, monkeypatch, method):
    assert independent(*released_noise(tmp_path / "run", monkeypatch, method))


@pytest.mark.parametrize("kind", ["classes", "steps"])
def test_the_published_bug_planted_in_a_run_is_found(tmp_path, monkeypatch, kind):
    source = SameForEveryRow(CipherNoise.fresh(), 4) if kind == "classes" else SameAtEveryStep()
    original = stage_run.add_noise

    def planted(bounded, *, noise_multiplier, source):
        return original(bounded, noise_multiplier=noise_multiplier, source=bad)

    bad = source
    monkeypatch.setattr(stage_run, "add_noise", planted)
    assert not independent(*released_noise(tmp_path / "run", monkeypatch, "sgd"))


class Killed(BaseException):
    pass


def killed_at(monkeypatch, release):
    """Stop the process, as it were, after the ledger counted this release and before its noise."""
    original, seen = stage_run.add_noise, []

    def dying(*args, **kwargs):
        seen.append(None)
        if len(seen) == release:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(stage_run, "add_noise", dying)


@pytest.mark.parametrize("release", [2, 5, 12])
def test_a_killed_run_goes_on_within_its_budget(tmp_path, digits, monkeypatch, release):
    killed_at(monkeypatch, release)
    with pytest.raises(Killed):
        train(digits, tmp_path / "run", "method=fc", "num_steps=11", "checkpoint_every=4")
    monkeypatch.undo()
    result = go_on(tmp_path / "run", data=digits)
    assert result["epsilon"] <= 3.0
    assert result["num_steps"] == 12
    assert result["num_lost"] == {2: 1, 5: 1, 12: 4}[release]
    assert result["test_accuracy"] > 0.7


def test_a_release_that_cannot_be_repeated_is_not(tmp_path, digits, monkeypatch):
    killed_at(monkeypatch, 1)
    with pytest.raises(Killed):
        train(digits, tmp_path / "run", "method=fc")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"'precondition'.*\[release-lost\]"):
        go_on(tmp_path / "run", data=digits)
    assert read_run_ledger(tmp_path / "run").num_steps == 1  # and it stays spent


def test_an_error_before_the_first_release_leaves_nothing(tmp_path, digits, monkeypatch):
    def broken(*_):
        raise Killed

    monkeypatch.setattr(stage_run, "sum_of", broken)
    with pytest.raises(Killed):
        train(digits, tmp_path / "run", "method=one-step")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_draws_fresh_noise(tmp_path, digits, monkeypatch):
    weights = []
    for name in ("a", "b"):
        killed_at(monkeypatch, 3)
        with pytest.raises(Killed):
            train(digits, tmp_path / name, "method=sgd", "num_steps=4", "noise_seed=1", "checkpoint_every=1")
        monkeypatch.undo()
        go_on(tmp_path / name, data=digits)
        weights.append(load_tensors(tmp_path / name / "weights.safetensors")[0]["weight"])
    whole = train(digits, tmp_path / "c", "method=sgd", "num_steps=4", "noise_seed=1")
    assert whole["private"] is False and whole["epsilon"] is None
    assert torch.equal(*weights)  # reproducible, and yet not the noise of the run that was not stopped
    assert not torch.equal(weights[0], load_tensors(tmp_path / "c" / "weights.safetensors")[0]["weight"])


def test_a_run_whose_ledger_is_gone_does_not_begin_another(tmp_path, digits, monkeypatch):
    killed_at(monkeypatch, 4)
    with pytest.raises(Killed):
        train(digits, tmp_path / "run", "method=fc", "num_steps=8", "checkpoint_every=1")
    monkeypatch.undo()
    for path in [*(tmp_path / "run").glob("checkpoint*"), tmp_path / "run" / "ledger.jsonl"]:
        path.unlink()
    assert (tmp_path / "run" / "weights.safetensors").exists()  # of the stages that are over
    with pytest.raises(LedgerError):
        go_on(tmp_path / "run", data=digits)


def test_an_edited_run_a_cut_ledger_and_other_data_are_refused(tmp_path, digits, monkeypatch):
    killed_at(monkeypatch, 4)
    with pytest.raises(Killed):
        train(digits, tmp_path / "run", "method=sgd", "num_steps=6", "checkpoint_every=1")
    monkeypatch.undo()
    path = tmp_path / "run" / "run.json"
    about = path.read_text()
    path.write_text(about.replace('"epsilon": 3.0', '"epsilon": 9.0'))
    with pytest.raises(ConfigError, match="run-edited"):
        go_on(tmp_path / "run", data=digits)
    path.write_text(about.replace('"method": "sgd"', '"method": "adam"'))
    with pytest.raises(ConfigError, match="run-edited"):
        go_on(tmp_path / "run", data=digits)
    path.write_text(about)
    other = Features(
        train=digits.train,
        test=digits.test,
        shape=digits.shape,
        about={**digits.about, "fingerprint": {"data": "other"}},
    )
    with pytest.raises(DataError, match="store-fingerprint"):
        go_on(tmp_path / "run", data=other)
    ledger = tmp_path / "run" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-2]))
    with pytest.raises(LedgerError, match="ledger-mismatch"):
        go_on(tmp_path / "run", data=digits)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["method=one-step", "num_steps=3"], "num_steps is no setting of method=one-step"),
        (["method=fc", "expected_batch_size=10"], "expected_batch_size is no setting of method=fc"),
        (["lr=3"], "lr would be chosen by method=auto"),
        (["method=sgd", "centre_share=0.2"], "centre_share is only read with centre=private"),
        (["method=sgd", "epsilon=inf", "max_norm=2"], "max_norm would be ignored"),
        (["method=nowton"], "method"),
    ],
)
def test_settings_that_nothing_reads_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        request("last-layer", settings)


def test_unknown_features_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"Known: digits.*\[unknown-features\]"):
        run(request("last-layer", ["features=imagenet"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_twin_is_logistic_regression_without_privacy(tmp_path, digits):
    result = train(digits, tmp_path / "run", "method=one-step", "twin=true")
    assert result["twin"]["test_accuracy"] > 0.93
