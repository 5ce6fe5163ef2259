"""Whole runs: the folder they leave, what it may hold, and how they go on."""

import dataclasses
import json
import math
import re
import shutil

import pytest
import torch

from reticent import train as the_front_door
from reticent.account import verify_traces
from reticent.account.ledger import Ledger, read_ledger
from reticent.errors import CheckpointError, ConfigError, CoupledExamples, DataError, LedgerError
from reticent.plan import LogicalBatch
from reticent.report import verify_run
from reticent.train import Evaluation, RunDescription, TrainSettings, _folder, _train, resume, train
from reticent.train import _step as step_module
from reticent.train._checkpoint import load_tensors
from tests.train.joint import cross_entropy, make_data, make_model, make_plan, weights_of


def scores(model, rows):
    x, y = rows
    return {"accuracy": (model(x).argmax(1) == y).double(), "loss": cross_entropy(model, rows)}


def run(out, *, num_steps=6, model=None, plan=None, **options):
    model = model or make_model()
    options.setdefault("evaluation", Evaluation(dataset=make_data(seed=1), scores=scores))
    options.setdefault("settings", TrainSettings(eval_every=2, checkpoint_every=2, ema=0.9, polyak=True))
    options.setdefault("loss_per_example", cross_entropy)
    options.setdefault("dataset", make_data())
    return train(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        plan=plan or make_plan(num_steps=num_steps),
        out=out,
        **options,
    )


def go_on(out, **options):
    model = make_model(seed=3)
    options.setdefault("loss_per_example", cross_entropy)
    return resume(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        dataset=make_data(),
        out=out,
        evaluation=Evaluation(dataset=make_data(seed=1), scores=scores),
        **options,
    )


class Stop(BaseException):
    """What stands for a kill."""


def stopping_after(num_steps):
    """A loss that stops the run inside the step after `num_steps`."""
    model_calls = {"steps": 0}

    def loss(model, rows):
        if model_calls["steps"] >= num_steps:
            raise Stop
        return cross_entropy(model, rows)

    return loss, model_calls


def stopped_run(out, *, after, **options):
    """A run that stops with `after` steps in its ledger."""
    loss, calls = stopping_after(after)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: calls.__setitem__("steps", calls["steps"] + 1))
    options.setdefault("settings", TrainSettings(eval_every=2, checkpoint_every=2, ema=0.9, polyak=True))
    with pytest.raises(Stop):
        train(
            model,
            optimizer,
            plan=options.pop("plan", make_plan(num_steps=8, batch=60)),
            dataset=make_data(),
            loss_per_example=loss,
            out=out,
            evaluation=Evaluation(dataset=make_data(seed=1), scores=scores),
            **options,
        )
    assert read_ledger(out / "ledger.jsonl").num_steps == after


# -- the folder ---------------------------------------------------------------------------------------


def test_a_run_leaves_the_folder_that_reports_read(tmp_path):
    out = tmp_path / "run"
    described = RunDescription(recipe="mine", config={"lr": 0.5}, data={"name": "toy"})
    result = run(out, description=described)
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoint-000004.safetensors",
        "checkpoint-000006.safetensors",
        "checkpoint.json",
        "ema.safetensors",
        "ledger.jsonl",
        "metrics.jsonl",
        "polyak.safetensors",
        "result.json",
        "run.json",
        "weights.safetensors",
    ]
    about = json.loads((out / "run.json").read_text())
    assert about["format"] == 1
    assert about["private"] is True
    assert (about["recipe"], about["config"], about["data"]) == ("mine", {"lr": 0.5}, {"name": "toy"})
    assert about["plan"] == make_plan(num_steps=6).describe()
    assert about["model"] == {"num_parameters": 53, "num_trainable": 53}
    assert result.private
    assert result.num_steps == 6
    assert result.num_lost == 0
    assert result.epsilon.epsilon == make_plan(num_steps=6).epsilon().epsilon
    saved = json.loads((out / "result.json").read_text())
    assert saved == result.to_dict()
    assert saved["test_accuracy"] == result.scores["ema"]["accuracy"]


def test_metrics_are_of_public_data_and_hold_nothing_else(tmp_path):
    run(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line.keys() == {"step", "split", "weights", "accuracy", "loss"} for line in lines)
    assert {line["split"] for line in lines} == {"test"}
    assert [line["step"] for line in lines if line["weights"] == "last"] == [2, 4, 6]
    assert [line["step"] for line in lines if line["weights"] == "ema"] == [2, 4, 6]


def test_nothing_computed_from_training_rows_is_written_by_default(tmp_path):
    allowed = {
        "run.json": {
            "format", "run_id", "created", "recipe", "config", "plan", "settings", "environment", "model",
            "data", "private",
        },
        "result.json": {
            "private", "epsilon", "delta", "neighbouring_relation", "accountant", "num_steps", "num_lost",
            "test_accuracy", "test_loss", "weights", "scores", "seconds", "run", "ledger_head",
        },
        "checkpoint.json": {"format", "checkpoints"},
    }  # fmt: skip
    run(tmp_path / "run")
    for name, fields in allowed.items():
        assert json.loads((tmp_path / "run" / name).read_text()).keys() == fields
    _, header = load_tensors(tmp_path / "run" / "checkpoint-000006.safetensors")
    assert header.keys() == {"format", "step", "updates", "ledger_head", "seconds", "clip_norms", "optimizer"}


def test_the_training_loss_is_shown_only_if_asked_for_and_kept_apart(tmp_path):
    run(tmp_path / "run", settings=TrainSettings(show_loss=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "not-private.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert all(0 < line["loss"] < 10 for line in lines)


def test_showing_the_loss_does_not_change_the_run(tmp_path):
    a, b = make_model(), make_model()
    run(tmp_path / "a", model=a, noise_seed=3, settings=TrainSettings(show_loss=True))
    run(tmp_path / "b", model=b, noise_seed=3, settings=TrainSettings())
    assert torch.equal(weights_of(a), weights_of(b))


def test_no_key_and_no_seed_of_noise_is_written(tmp_path, monkeypatch):
    import os

    keys = []
    real = os.urandom

    def listening(n):
        keys.append(real(n))
        return keys[-1]

    monkeypatch.setattr(os, "urandom", listening)
    run(tmp_path / "run")
    written = b"".join(p.read_bytes() for p in (tmp_path / "run").iterdir())
    long = [k for k in keys if len(k) >= 16]
    assert len(long) >= 7
    assert not any(k in written or k.hex().encode() in written for k in long)


def test_the_front_door_runs_it(tmp_path):
    model = make_model()
    result = the_front_door(
        model,
        torch.optim.Adam(model.parameters()),
        plan=make_plan(num_steps=2),
        dataset=make_data(),
        loss_per_example=cross_entropy,
        out=tmp_path / "run",
    )
    assert result.num_steps == 2
    assert result.scores == {}


# -- randomness ---------------------------------------------------------------------------------------


def test_the_same_seed_twice_gives_other_batches_and_other_noise(tmp_path, monkeypatch):
    drawn = []
    real = LogicalBatch.__init__

    def spy(self, **fields):
        drawn.append(fields["indices"].tolist())
        real(self, **fields)

    monkeypatch.setattr(LogicalBatch, "__init__", spy)
    models = [make_model(), make_model()]
    for k, model in enumerate(models):
        run(tmp_path / str(k), model=model, settings=TrainSettings(seed=11))
    assert len(drawn) == 12
    assert drawn[:6] != drawn[6:]
    assert not torch.equal(weights_of(models[0]), weights_of(models[1]))


def test_the_same_noise_seed_twice_gives_the_same_weights_and_no_privacy(tmp_path):
    models = [make_model(), make_model()]
    for k, model in enumerate(models):
        result = run(tmp_path / str(k), model=model, noise_seed=4)
        assert not result.private
        assert math.isinf(result.epsilon.epsilon)
        assert json.loads((tmp_path / str(k) / "result.json").read_text())["epsilon"] is None
        assert json.loads((tmp_path / str(k) / "run.json").read_text())["private"] is False
        assert read_ledger(tmp_path / str(k) / "ledger.jsonl").reproducible
    assert torch.equal(weights_of(models[0]), weights_of(models[1]))
    other = make_model()
    run(tmp_path / "2", model=other, noise_seed=5)
    assert not torch.equal(weights_of(models[0]), weights_of(other))


def test_dropout_follows_the_public_seed_and_leaves_torchs_generator_alone(tmp_path):
    def weights(folder, seed):
        model = make_model()
        model.insert(1, torch.nn.Dropout(0.5))
        run(tmp_path / folder, model=model, noise_seed=1, settings=TrainSettings(seed=seed))
        assert model.training
        return weights_of(model)

    torch.manual_seed(77)
    before = torch.get_rng_state()
    first = weights("a", 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(78)
    assert torch.equal(first, weights("b", 0))
    assert not torch.equal(first, weights("c", 1))


# -- going on -----------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_to_exactly_the_planned_steps_and_lost_ones_stay_spent(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=5)
    result = go_on(out)
    view = read_ledger(out / "ledger.jsonl")
    assert (view.num_steps, view.num_lost, view.num_resumes) == (8, 1, 1)
    assert (result.num_steps, result.num_lost) == (8, 1)
    assert result.epsilon.epsilon == make_plan(num_steps=8, batch=60).epsilon().epsilon
    weights, _ = load_tensors(out / "weights.safetensors")
    assert all(bool(t.isfinite().all()) for t in weights.values())
    _, header = load_tensors(out / "checkpoint-000008.safetensors")
    assert header["updates"] == 7


def test_a_run_can_be_stopped_again_and_again(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=3)
    for after in (5, 7):
        loss, calls = stopping_after(after)
        calls["steps"] = read_ledger(out / "ledger.jsonl").num_steps
        model = make_model(seed=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        optimizer.register_step_post_hook(
            lambda *_, calls=calls: calls.__setitem__("steps", calls["steps"] + 1)
        )
        with pytest.raises(Stop):
            resume(model, optimizer, dataset=make_data(), out=out, loss_per_example=loss)
    result = go_on(out)
    view = read_ledger(out / "ledger.jsonl")
    assert (view.num_steps, view.num_resumes) == (8, 3)
    assert result.num_lost == view.num_lost == 3


def test_noise_and_batches_are_fresh_after_a_resume(tmp_path):
    """Two forks of one stopped run: the very same next step comes out differently."""
    stopped_run(tmp_path / "a", after=4, settings=TrainSettings(checkpoint_every=2))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    weights = []
    for name in ("a", "b"):
        go_on(tmp_path / name)
        weights.append(load_tensors(tmp_path / name / "weights.safetensors")[0]["0.weight"])
    assert not torch.equal(*weights)


def test_a_resumed_reproducible_run_does_not_replay_its_noise_either(tmp_path):
    drawn = []

    class Listening(step_module.CipherNoise):
        def normal(self, shape, *, dtype, device="cpu"):
            drawn.append(super().normal(shape, dtype=dtype, device=device))
            return drawn[-1].clone()

    from reticent.train import _train as train_module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "CipherNoise", Listening)
        stopped_run(tmp_path / "run", after=3, noise_seed=6, settings=TrainSettings(checkpoint_every=0))
        before = len(drawn)
        result = go_on(tmp_path / "run")
    assert not result.private
    old = {float(t.flatten()[0]) for t in drawn[:before]}
    new = {float(t.flatten()[0]) for t in drawn[before:]}
    assert before >= 12
    assert not old & new


def test_a_run_stopped_before_its_first_checkpoint_starts_anew(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=1, settings=TrainSettings(checkpoint_every=0))
    result = go_on(out)
    assert (result.num_steps, result.num_lost) == (8, 1)


@pytest.mark.parametrize("missing", [("ledger.jsonl", "checkpoint"), ("checkpoint",)])
def test_a_run_stopped_while_its_folder_was_made_can_be_resumed(tmp_path, missing):
    out = tmp_path / "run"
    stopped_run(out, after=1, settings=TrainSettings(checkpoint_every=0))
    plan = make_plan(num_steps=8, batch=60)
    for path in list(out.iterdir()):
        if path.name.startswith(missing) or path.name.startswith("ledger"):
            path.unlink()
    if "ledger.jsonl" not in missing:
        Ledger.create(
            out / "ledger.jsonl",
            run_id=json.loads((out / "run.json").read_text())["run_id"],
            relation=plan.relation,
            delta=plan.delta,
            num_steps=8,
            public={},
        ).close()
    result = go_on(out)
    assert (result.num_steps, result.num_lost) == (8, 0)


@pytest.mark.parametrize("shown", ["show_loss", "show_norms"])
def test_a_run_never_shows_rows_that_its_ledger_does_not_speak_of(tmp_path, shown):
    out = tmp_path / "run"
    stopped_run(out, after=3)
    about = json.loads((out / "run.json").read_text())
    about["settings"][shown] = True
    (out / "run.json").write_text(json.dumps(about))
    before = (out / "ledger.jsonl").read_bytes()
    with pytest.raises(LedgerError, match="shows") as caught:
        go_on(out)
    assert caught.value.code == "ledger-plan"
    assert (out / "ledger.jsonl").read_bytes() == before
    assert not (out / "not-private.jsonl").exists()


def test_a_finished_run_resumed_takes_no_further_step(tmp_path):
    run(tmp_path / "run")
    before = load_tensors(tmp_path / "run" / "weights.safetensors")[0]
    result = go_on(tmp_path / "run")
    assert result.num_steps == 6
    after = load_tensors(tmp_path / "run" / "weights.safetensors")[0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_damaged_checkpoint_costs_steps_and_never_privacy(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=5)
    (out / "checkpoint-000004.safetensors").write_bytes(b"torn")
    result = go_on(out)
    assert (result.num_steps, result.num_lost) == (8, 3)
    assert read_ledger(out / "ledger.jsonl").num_lost == 3


def test_checkpoints_gone_means_no_resume(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=5)
    for path in out.glob("checkpoint*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"holds 5 steps.*\[checkpoint-missing\]"):
        go_on(out)
    assert read_ledger(out / "ledger.jsonl").num_steps == 5


def test_a_ledger_whose_tail_was_cut_is_noticed(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=5)
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (out / "ledger.jsonl").write_bytes(b"".join(lines[:-3]))
    with pytest.raises(LedgerError, match=r"cut off.*\[ledger-mismatch\]"):
        go_on(out)


def cut(out, num_steps):
    """Cut the ledger behind a step, and take later checkpoints out of the list."""
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    while read_ledger(out / "ledger.jsonl").num_steps > num_steps:
        lines.pop()
        (out / "ledger.jsonl").write_bytes(b"".join(lines))
    index = json.loads((out / "checkpoint.json").read_text())
    index["checkpoints"] = [entry for entry in index["checkpoints"] if entry["step"] <= num_steps]
    (out / "checkpoint.json").write_text(json.dumps(index))


WITNESSES = (
    "checkpoint-000006.safetensors",
    "metrics.jsonl",
    "weights.safetensors",
    "ema.safetensors",
    "polyak.safetensors",
    "result.json",
)


@pytest.mark.parametrize("left", WITNESSES)
def test_a_cut_behind_a_checkpoint_that_is_no_longer_listed_is_noticed(tmp_path, left):
    """By any one file that names a step: here all others are gone."""
    out = tmp_path / "run"
    run(out, num_steps=6)
    cut(out, 4)
    for name in WITNESSES:
        if name != left:
            (out / name).unlink()
    with pytest.raises(LedgerError, match=rf"'{left}' was written after 6 steps.*\[ledger-mismatch\]"):
        go_on(out)
    assert read_ledger(out / "ledger.jsonl").num_steps == 4
    assert any("cut off its end" in problem for problem in verify_run(out).problems)


def test_a_checkpoint_that_is_not_listed_and_of_another_chain_is_noticed(tmp_path):
    """As many steps as the ledger holds, entered after a cut: the head is not in the chain."""
    out = tmp_path / "run"
    run(out, num_steps=8, settings=TrainSettings(checkpoint_every=2))
    kept = (out / "checkpoint-000008.safetensors").read_bytes()
    cut(out, 6)
    for name in ("checkpoint-000008.safetensors", *WITNESSES[1:]):
        (out / name).unlink(missing_ok=True)
    go_on(out)  # nothing is left that could tell: as if the whole folder had been put back
    index = json.loads((out / "checkpoint.json").read_text())
    index["checkpoints"] = index["checkpoints"][1:]
    (out / "checkpoint.json").write_text(json.dumps(index))
    (out / "checkpoint-000008.safetensors").write_bytes(kept)
    (out / "result.json").unlink()
    with pytest.raises(LedgerError, match=r"no line.*\[ledger-mismatch\]"):
        go_on(out)


@pytest.mark.parametrize("wrong", [0.5, torch.tensor(0.5), torch.zeros(7)])
def test_scores_that_are_not_of_each_row_are_refused_before_anything_is_spent(tmp_path, wrong):
    with pytest.raises(ConfigError, match=r"one value for each row.*\[scores\]"):
        run(
            tmp_path / "run",
            evaluation=Evaluation(dataset=make_data(), scores=lambda *_: {"accuracy": wrong}),
        )
    assert not (tmp_path / "run").exists() or read_ledger(tmp_path / "run" / "ledger.jsonl").num_steps == 0


def test_a_crash_between_a_checkpoint_and_its_list_is_no_cut(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=5)
    index = json.loads((out / "checkpoint.json").read_text())
    index["checkpoints"] = index["checkpoints"][1:]
    (out / "checkpoint.json").write_text(json.dumps(index))
    assert go_on(out).num_lost == 3


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}\n", b"\xff\xfe", b'{"step": "x"}\n{"step": 2}\n', b"{" * 9999]
)
def test_damaged_files_are_no_witnesses(tmp_path, text):
    out = tmp_path / "run"
    stopped_run(out, after=5)
    for name in ("metrics.jsonl", "result.json", "weights.safetensors", "not-private.jsonl"):
        (out / name).write_bytes(text)
    (out / "checkpoint-000004-copy.safetensors").write_bytes(text)
    assert verify_traces(read_ledger(out / "ledger.jsonl"), out) >= 1


@pytest.mark.parametrize("damage", ["change", "remove", "delete"])
def test_a_damaged_ledger_stops_the_resume(tmp_path, damage):
    out = tmp_path / "run"
    stopped_run(out, after=5)
    path = out / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "change":
        path.write_bytes(path.read_bytes().replace(b'"noise_multiplier":1.0', b'"noise_multiplier":9.0'))
    elif damage == "remove":
        path.write_bytes(b"".join(lines[:3] + lines[4:]))
    else:
        path.unlink()
    with pytest.raises(LedgerError, match=r"\[ledger-(damaged|missing)\]"):
        go_on(out)


def test_a_torn_last_line_of_the_ledger_is_dropped(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=5)
    with open(out / "ledger.jsonl", "ab") as f:
        f.write(b'{"seq":7,"prev":"')
    assert go_on(out).num_steps == 8


def test_a_torn_last_line_of_the_metrics_is_dropped(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=5)
    with open(out / "metrics.jsonl", "a") as f:
        f.write('{"step": 5, "spl')
    go_on(out)
    assert all(json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=5)
    model = torch.nn.Linear(6, 3)
    with pytest.raises(CheckpointError, match=r"\[checkpoint-mismatch\]"):
        resume(
            model,
            torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
            dataset=make_data(),
            loss_per_example=cross_entropy,
            out=out,
        )


def test_a_second_process_is_kept_out(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=5)
    with Ledger.open(out / "ledger.jsonl"), pytest.raises(LedgerError, match=r"\[ledger-locked\]"):
        go_on(out)


@pytest.mark.parametrize("text", [None, "", "{", '{"format": 9}', "[]"])
def test_what_is_no_run_is_not_resumed(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"\[not-a-run\]"):
        go_on(tmp_path)


# -- bad input spends nothing and leaves nothing ------------------------------------------------------


def mean_loss(model, rows):
    return cross_entropy(model, rows).mean()


def coupled_loss(model, rows):
    return cross_entropy(model, rows) / len(rows[0])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"dataset": make_data(num_examples=63)}, ConfigError, "data-size"),
        ({"dataset": (torch.zeros(0, 6), torch.zeros(0))}, DataError, "data-empty"),
        ({"dataset": iter(())}, DataError, "data-rows"),
        ({"loss_per_example": mean_loss}, ConfigError, "loss"),
        ({"loss_per_example": coupled_loss}, CoupledExamples, "loss"),
        ({"physical_batch_size": 0}, ConfigError, "physical-batch-size"),
        ({"plan": make_plan(noise_multiplier=0.0)}, ConfigError, "no-noise"),
        ({"noise_seed": "x"}, ConfigError, "seed"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_folder(tmp_path, options, error, text):
    with pytest.raises(error, match=rf"\[[a-z-]*{text}[a-z-]*\]"):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_labels_out_of_range_spend_nothing(tmp_path):
    data = make_data()
    data.tensors[1][:] = 7
    with pytest.raises(IndexError):
        run(tmp_path / "run", dataset=data)
    assert not (tmp_path / "run").exists()


def test_an_error_after_the_first_step_keeps_the_folder(tmp_path):
    stopped_run(tmp_path / "run", after=1)
    assert (tmp_path / "run" / "ledger.jsonl").exists()


@pytest.mark.parametrize("is_file", [True, False])
def test_a_run_never_writes_over_something(tmp_path, is_file):
    out = tmp_path / "run"
    if is_file:
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=rf"{re.escape(str(out))}.*\[out-exists\]"):
        run(out)
    assert (out if is_file else out / "notes.txt").read_text() == "mine"


def test_of_two_processes_that_begin_at_once_one_wins_and_its_files_stay(tmp_path, monkeypatch):
    out = tmp_path / "run"
    real = _folder.write_new_json

    def late(path, value):
        real(path, {"format": 1, "run_id": "the other's"})
        real(path, value)

    monkeypatch.setattr(_folder, "write_new_json", late)
    with pytest.raises(ConfigError, match=r"Another process.*\[out-exists\]"):
        run(out)
    assert [p.name for p in out.iterdir()] == ["run.json"]
    assert "the other's" in (out / "run.json").read_text()


def test_an_interrupt_while_the_ledger_is_made_is_not_hidden_by_its_unfinished_file(tmp_path, monkeypatch):
    def interrupted(path, plan, **_):
        path.write_bytes(b'{"seq":0')
        raise KeyboardInterrupt

    monkeypatch.setattr(_train, "create_ledger", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_counts_other_updates_than_the_ledger_is_refused(tmp_path):
    out = tmp_path / "run"
    stopped_run(out, after=3)
    real = _train.load_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _train, "load_checkpoint", lambda *a, **k: dataclasses.replace(real(*a, **k), updates=1)
        )
        with pytest.raises(CheckpointError, match=r"counts 1 updates.*holds 2.*\[checkpoint-mismatch\]"):
            go_on(out)


@pytest.mark.parametrize("settings", [{"eval_every": -1}, {"checkpoint_every": 1.5}, {"ema": 1.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=r"\[train-settings\]"):
        TrainSettings(**settings)
