"""Recipes from name to result, on the embedded digits."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from reticent.account.ledger import read_ledger
from reticent.data import ArrayPair, load
from reticent.errors import AuditError, ConfigError, DataError
from reticent.recipes import _arrays as arrays_module
from reticent.recipes import _training as training_module
from reticent.recipes import audit_run, go_on, load_model, recipes, request, run, run_or_go_on
from reticent.recipes._parts import asked_of, build_model, scored_at_once
from reticent.recipes.vision import _recipe as vision_module
from reticent.report import verify_run, write_report
from reticent.train import _step as step_module
from reticent.train import mix_seed
from reticent.train._checkpoint import load_tensors

SHORT = ["num_steps=6", "eval_every=3", "checkpoint_every=2", "expected_batch_size=40"]
LOOSE = ["epsilon=1000", "noise_multiplier=3"]


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_digits_learns_within_its_budget(tmp_path, digits):
    result = run(request("digits", ["num_steps=30"]), out=tmp_path / "run", data=digits)
    assert result["private"] is True
    assert 2.9 < result["epsilon"] <= 3.0
    assert result["delta"] == 1e-5
    assert result["neighbouring_relation"] == "zero-out-one"
    assert result["test_accuracy"] > 0.75
    assert result["run"] == str(tmp_path / "run")
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["recipe"] == "digits"
    assert about["config"]["num_steps"] == 30
    assert about["data"]["licence"] == digits.licence


def test_a_twin_is_trained_beside_without_privacy(tmp_path, digits):
    result = run(request("digits", [*SHORT, "twin=true"]), out=tmp_path / "run", data=digits)
    twin = json.loads((tmp_path / "run" / "twin" / "result.json").read_text())
    assert twin["private"] is False
    assert twin["epsilon"] is None
    assert twin["num_steps"] == 6
    assert result["twin"]["test_accuracy"] == twin["test_accuracy"]
    assert result["twin"]["time_ratio"] > 0
    assert result["private"] is True and result["twin"]["private"] is False
    assert (tmp_path / "run" / "twin" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "twin" / "ledger.jsonl").exists()


def test_epsilon_inf_trains_without_privacy_and_says_so(tmp_path, digits):
    result = run(request("digits", [*SHORT, "epsilon=inf"]), out=tmp_path / "run", data=digits)
    assert result["private"] is False
    assert result["epsilon"] is None
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["private"] is False


def test_half_precision_runs_the_model_in_half_and_keeps_sums_in_single(tmp_path, digits, monkeypatch):
    seen = []
    loss = arrays_module.cross_entropy

    def watched(model, rows):
        seen.append(model(rows[0]).dtype)
        return loss(model, rows)

    monkeypatch.setattr(arrays_module, "cross_entropy", watched)
    run(request("digits", [*SHORT, "precision=bfloat16"]), out=tmp_path / "run", data=digits)
    steps = seen[len(seen) - seen[::-1].index(torch.float32) :]  # after the guard, which compares in single
    assert len(steps) >= 6 and set(steps) == {torch.bfloat16}
    weights, _ = load_tensors(tmp_path / "run" / "weights.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}


def test_a_noise_seed_fixes_everything_and_ends_privacy(tmp_path, digits):
    for name in ("a", "b"):
        asked = request("digits", [*SHORT, "noise_seed=1", "seed=2"])
        result = run(asked, out=tmp_path / name, data=digits)
        assert (result["private"], result["epsilon"]) == (False, None)
    a, b = (load_tensors(tmp_path / name / "weights.safetensors")[0] for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_same_seed_gives_the_same_start_and_another_end(tmp_path, digits):
    for name in ("a", "b"):
        run(
            request("digits", [*SHORT, "seed=5"]),
            out=tmp_path / name,
            data=digits,
        )
    a, b = (load_tensors(tmp_path / name / "weights.safetensors")[0] for name in ("a", "b"))
    assert not any(torch.equal(a[key], b[key]) for key in a)
    recipe = recipes()["digits"]
    first, second = (build_model(recipe, request("digits", ["seed=5"]).config) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    "setting", ["optimizer=adam", "optimizer=adamw", "model=logistic", "ema=0", "show_loss=true"]
)
def test_every_choice_runs(tmp_path, digits, setting):
    lr = ["lr=0.01"] if "adam" in setting else []
    result = run(request("digits", [*SHORT, "num_steps=2", setting, *lr]), out=tmp_path / "run", data=digits)
    assert result["num_steps"] == 2
    assert result["weights"] == ("last" if setting == "ema=0" else "ema")
    assert (tmp_path / "run" / "not-private.jsonl").exists() == (setting == "show_loss=true")


@pytest.mark.parametrize(("name", "size"), [("tanh-cnn", 26_010), ("tanh-cnn-gn", 26_010 + 2 * (16 + 32))])
def test_the_fashion_network_has_the_published_size_and_treats_rows_alone(name, size):
    asked = request("fashion-mnist", [f"model={name}"])
    model = build_model(asked.recipe, asked.config)
    assert sum(p.numel() for p in model.parameters()) == size
    x = torch.randint(256, (3, 28, 28), dtype=torch.uint8)
    assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-6)


def test_the_fashion_network_is_the_one_whose_figures_are_published():
    asked = request("fashion-mnist")
    model = build_model(asked.recipe, asked.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(0, "weights"))
        written_out = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 8, stride=2, padding=2), torch.nn.GroupNorm(4, 16), torch.nn.Tanh(),
            torch.nn.MaxPool2d(2, stride=1),
            torch.nn.Conv2d(16, 32, 4, stride=2), torch.nn.GroupNorm(4, 32), torch.nn.Tanh(),
            torch.nn.MaxPool2d(2, stride=1), torch.nn.Flatten(),
            torch.nn.Linear(512, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10),
        )  # fmt: skip
    x = torch.randint(256, (3, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(model(x), written_out(x[:, None] / 127.5 - 1.0))


# -- going on -----------------------------------------------------------------------------------------


class Stop(BaseException):
    """What stands for a kill."""


def stop_at(monkeypatch, step):
    from reticent.train import _loop

    real = _loop._take

    def take(stepper, batch, *rest):
        if stepper.num_steps == step:
            raise Stop
        return real(stepper, batch, *rest)

    monkeypatch.setattr(_loop, "_take", take)
    return lambda: monkeypatch.setattr(_loop, "_take", real)


@pytest.mark.parametrize("settings", [["twin=true"], ["epsilon=inf"], ["noise_seed=3"]])
def test_a_stopped_run_goes_on_to_its_end(tmp_path, digits, monkeypatch, settings):
    out = tmp_path / "run"
    let_go = stop_at(monkeypatch, 5)
    with pytest.raises(Stop):
        run(request("digits", [*SHORT, *settings]), out=out, data=digits)
    let_go()
    result = go_on(out, data=digits)
    assert result["num_steps"] == 6
    assert result["private"] == (settings == ["twin=true"])
    assert ("twin" in result) == (settings == ["twin=true"])
    if result["private"]:
        assert result["num_lost"] == read_ledger(out / "ledger.jsonl").num_lost == 1
    assert go_on(out, data=digits) == result


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)  # torch's own
@pytest.mark.slow  # compiles
def test_a_compiled_run_ends_where_an_eager_one_does_and_goes_on_compiled(tmp_path, digits, monkeypatch):
    made, weights = [], {}
    make = step_module.CompiledEngine
    monkeypatch.setattr(
        step_module, "CompiledEngine", lambda *a, **options: made.append(make(*a, **options)) or made[-1]
    )
    for name in ("false", "true"):
        out = tmp_path / name
        let_go = stop_at(monkeypatch, 5)
        with pytest.raises(Stop):
            settings = [*SHORT, "noise_seed=1", "physical_batch_size=16", f"compile={name}"]
            run(request("digits", settings), out=out, data=digits)
        let_go()
        go_on(out, data=digits)
        weights[name] = load_tensors(out / "weights.safetensors")[0]
    assert len(made) == 2  # one for the run, one for the rest of it
    assert [engine.num_eager for engine in made] == [1, 1]  # the first chunk; batches have many sizes
    for key, eager in weights["false"].items():
        torch.testing.assert_close(weights["true"][key], eager, rtol=1e-3, atol=1e-4)


def test_a_run_stopped_in_its_twin_trains_the_twin_again(tmp_path, digits, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(training_module, "train_twin", lambda *_: (_ for _ in ()).throw(Stop))
        run(request("digits", [*SHORT, "twin=true"]), out=out, data=digits)
    result = go_on(out, data=digits)
    assert result["num_steps"] == read_ledger(out / "ledger.jsonl").num_steps == 6
    assert "twin" in result


# -- data that cannot be had, or is wrong -------------------------------------------------------------


def unreachable(monkeypatch, *, code="data-sources"):
    def fail(name, **options):
        if name == "digits":
            return load(name, **options)
        raise DataError(f"'{name}' could not be had from any source: https refused.", code=code)

    for module in (arrays_module, vision_module):
        monkeypatch.setattr(module, "load", fail)


def test_unreachable_data_fall_back_to_digits_loudly(tmp_path, monkeypatch, capsys):
    from rich.console import Console

    unreachable(monkeypatch)
    asked = request("fashion-mnist", ["epsilon=2", "noise_seed=1", "num_steps=1000", "lr=3"])
    with monkeypatch.context() as patch:
        patch.setitem(vars(training_module), "make_config", short_config)
        result = run(asked, out=tmp_path / "run", console=Console(stderr=True, width=400))
    told = capsys.readouterr().err
    assert "https refused" in told
    assert "ATTENTION" in told
    assert "without your settings lr, num_steps" in told
    assert (result["recipe"], result["fallback_from"]) == ("digits", "fashion-mnist")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["recipe"] == "digits"
    assert about["data"]["fallback_from"] == "fashion-mnist"
    assert about["config"]["epsilon"] == 2
    assert about["config"]["noise_seed"] == 1


def test_the_same_command_goes_on_with_a_run_that_fell_back(tmp_path, monkeypatch):
    unreachable(monkeypatch)
    monkeypatch.setitem(vars(training_module), "make_config", short_config)
    out = tmp_path / "run"
    first = run_or_go_on(request("fashion-mnist", ["epsilon=2", "lr=3"]), out=out)
    ledger = (out / "ledger.jsonl").read_bytes()
    monkeypatch.setattr(vision_module, "load", load)  # also where the data can be had again
    assert run_or_go_on(request("fashion-mnist", ["epsilon=2", "lr=3"]), out=out) == first
    assert (out / "ledger.jsonl").read_bytes() == ledger
    with pytest.raises(ConfigError, match="epsilon differ") as caught:
        run_or_go_on(request("fashion-mnist", ["epsilon=3"]), out=out)
    assert caught.value.code == "other-run"


def test_the_same_command_goes_on_with_a_run_that_found_its_physical_batch(tmp_path, digits):
    words = [*SHORT, "physical_batch_size=auto", "memory_budget=1GiB"]
    first = run(request("digits", words), out=tmp_path / "run", data=digits)
    assert run_or_go_on(request("digits", words), out=tmp_path / "run") == first
    with pytest.raises(ConfigError, match="physical_batch_size differ"):
        run_or_go_on(request("digits", [*SHORT, "physical_batch_size=7"]), out=tmp_path / "run")


def short_config(kind, settings):
    return kind.model_validate({**settings, "num_steps": 2, "expected_batch_size": 40})


def test_wrong_data_do_not_fall_back(tmp_path, monkeypatch):
    unreachable(monkeypatch, code="data-checksum")
    with pytest.raises(DataError, match="data-checksum"):
        run(request("fashion-mnist"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def change(data, split, **arrays):
    pair = getattr(data, split)
    return dataclasses.replace(data, **{split: ArrayPair(**{"x": pair.x, "y": pair.y, **arrays})})


@pytest.mark.parametrize(
    ("split", "arrays", "code"),
    [
        ("train", {"x": np.zeros((0, 8, 8)), "y": np.zeros(0, np.int64)}, "data-empty"),
        ("test", {"x": np.zeros((0, 8, 8)), "y": np.zeros(0, np.int64)}, "data-empty"),
        ("train", {"x": np.zeros((1437, 64))}, "data-shape"),
        ("train", {"x": np.zeros((1436, 8, 8))}, "data-shape"),
        ("train", {"y": np.zeros((1437, 1), np.int64)}, "data-shape"),
        ("train", {"y": np.full(1437, 10)}, "data-labels"),
        ("train", {"y": np.full(1437, -1)}, "data-labels"),
        ("test", {"y": np.full(360, 0.5)}, "data-labels"),
        ("train", {"x": np.zeros((20, 8, 8)), "y": np.zeros(20, np.int64)}, "data-size"),
    ],
)
def test_wrong_data_are_refused_and_nothing_is_left(tmp_path, digits, split, arrays, code):
    with pytest.raises((DataError, ConfigError), match=rf"\[{code}\]"):
        run(request("digits"), out=tmp_path / "run", data=change(digits, split, **arrays))
    assert not (tmp_path / "run").exists()


# -- a batch size that changes --------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [["twin=true", *LOOSE], ["epsilon=inf"]])
def test_a_run_of_stages_that_was_stopped_goes_on_to_its_end(tmp_path, digits, monkeypatch, settings):
    out, short = tmp_path / "run", [*SHORT[:-1], "batch_schedule=0.0:20,0.5:60"]
    let_go = stop_at(monkeypatch, 5)
    with pytest.raises(Stop):
        run(request("digits", [*short, *settings]), out=out, data=digits)
    let_go()
    result = go_on(out, data=digits)
    assert result["num_steps"] == 6
    if settings == ["epsilon=inf"]:
        return
    q = [m.sampling_prob for m, _ in read_ledger(out / "ledger.jsonl").segments()]
    assert q == [20 / 1437, 60 / 1437]
    found = verify_run(out)
    assert found.sound, found.problems
    write_report(out)
    assert "20 for 3 steps, then 60 for 3 steps" in (out / "report.html").read_text()
    with pytest.raises(AuditError, match="audit-recipe"):
        audit_run(out)


@pytest.mark.parametrize(
    ("name", "value"), [("batch_schedule", "0.0:20,0.5:40"), ("expected_batch_size", 20.0)]
)
def test_a_schedule_edited_in_the_description_is_refused(tmp_path, digits, monkeypatch, name, value):
    out = tmp_path / "run"
    stop_at(monkeypatch, 1)
    with pytest.raises(Stop):
        run(request("digits", [*SHORT[:-1], *LOOSE, "batch_schedule=0.0:20,0.5:60"]), out=out, data=digits)
    about = json.loads((out / "run.json").read_text())
    about["config"][name] = value
    (out / "run.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=name):
        go_on(out, data=digits)


def test_the_same_command_goes_on_with_a_run_of_an_older_version(tmp_path):
    """Whose settings lack what was added since: they are the defaults."""
    out = tmp_path / "run"
    first = run_or_go_on(request("digits", ["num_steps=2"]), out=out)
    about = json.loads((out / "run.json").read_text())
    del about["config"]["polyak"], about["settings"]["polyak"]
    (out / "run.json").write_text(json.dumps(about))
    again = run_or_go_on(request("digits", ["num_steps=2"]), out=out)
    assert again["ledger_head"] == first["ledger_head"]
    with pytest.raises(ConfigError, match="polyak differ"):
        run_or_go_on(request("digits", ["num_steps=2", "polyak=true"]), out=out)


def test_as_many_test_rows_are_scored_at_once_as_a_physical_batch_has_inputs():
    at_once = {
        (name, *settings): scored_at_once(*asked_of(request(name, list(settings))))
        for name, *settings in (
            ("digits", "physical_batch_size=16"),
            ("cifar10", "physical_batch_size=8", "augmult=0"),
            ("cifar10", "physical_batch_size=8", "augmult=16"),
            ("cifar10", "physical_batch_size=512", "augmult=16"),
            ("text-classify", "physical_batch_size=4"),
        )
    }
    assert list(at_once.values()) == [16, 8, 128, 1024, 4]


def test_the_final_evaluation_takes_no_more_rows_than_a_physical_batch(tmp_path, digits):
    seen = []

    def watch(module, given):
        if not module.training and isinstance(module, torch.nn.Linear) and not torch.is_grad_enabled():
            seen.append(len(given[0]))

    with torch.nn.modules.module.register_module_forward_pre_hook(watch):
        run(request("digits", [*SHORT, "physical_batch_size=16"]), out=tmp_path / "run", data=digits)
    assert max(seen) == 16
    assert load_model(tmp_path / "run")._reader.batch_size == 16
