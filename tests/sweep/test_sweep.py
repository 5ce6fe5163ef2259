"""Whole sweeps on the embedded digits: what they leave, state, survive and refuse."""

import json
import os
import signal

import pytest

from reticent.account import epsilon
from reticent.account.ledger import read_ledger
from reticent.errors import ConfigError, LedgerError
from reticent.recipes import digits
from reticent.sweep import _pool, _table, _trial, read_sweep, sweep

# Whole batches: their accounting is a closed form, and a run takes a moment.
QUICK = ["num_steps=2", "ema=0", "checkpoint_every=0", "expected_batch_size=1437", "physical_batch_size=1437"]


def small(*grid, more=(), **options):
    return read_sweep("digits", [*QUICK, *more], list(grid) or ["lr=1,2", "epsilon=1,4"], **options)


def test_it_leaves_runs_a_table_a_plot_and_what_all_cost_together(tmp_path, in_process):
    result = sweep(small(), out=tmp_path / "out", validation_public=True)
    assert result["trials"] == {"done": 5, "failed": 0, "refused": 0}
    ledgers = [read_ledger(path) for path in (tmp_path / "out").glob("trials/*/ledger.jsonl")]
    assert len(ledgers) == 4
    every = [segment for ledger in ledgers for segment in ledger.segments()]
    assert result["privacy"]["epsilon_all"] == epsilon(every, delta=1e-5).epsilon
    assert result["privacy"]["epsilon_all"] > result["privacy"]["epsilon_one"] > 3.9
    private, plain = result["lines"]
    assert [point["x"] for point in private["points"]] == [1, 4]
    assert [point["x"] for point in plain["points"]] == [None]
    scores = {
        (row["settings"].get("epsilon"), row["settings"].get("lr")): row["score"] for row in result["rows"]
    }
    assert private["points"][0]["score"] == max(scores[1, 1], scores[1, 2])
    assert result["best"]["score"] == max(value for (e, _), value in scores.items() if e != "inf")
    assert any("tuning on the private data" in note for note in result["notes"])
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "out" / "plot.png").stat().st_size > 5000
    assert "epsilon_all, not epsilon_one" in (tmp_path / "out" / "table.md").read_text()


def test_no_best_run_is_named_unless_the_scores_are_of_public_data(tmp_path, in_process):
    result = sweep(small("lr=1,2"), out=tmp_path / "out", plain=False)
    assert result["best"] is None
    assert any("--validation public" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        (["sampler=poisson,fixed-size"], "neighbouring relation .*replace-one, zero-out-one"),
        (["sampler=fixed-size", "epsilon=1,4"], "together with other steps"),
    ],
)
def test_runs_without_an_epsilon_together_are_refused_before_the_first(tmp_path, in_process, grid, says):
    asked = read_sweep("digits", ["num_steps=2", "expected_batch_size=100"], grid)
    with pytest.raises(ConfigError, match=says) as refused:
        sweep(asked, out=tmp_path / "out")
    assert refused.value.code == "sweep"
    assert in_process == [] and not (tmp_path / "out").exists()


def test_no_processes_run_nothing_and_are_refused(tmp_path, in_process):
    with pytest.raises(ConfigError, match="jobs must be at least 1"):
        sweep(read_sweep("digits", [*QUICK], ["lr=1,2"]), out=tmp_path / "out", jobs=0)
    assert in_process == [] and not (tmp_path / "out").exists()


def test_runs_that_compose_are_swept_together(tmp_path, in_process):
    asked = read_sweep("digits", ["num_steps=2", "expected_batch_size=100"],
                       ["sampler=fixed-size", "lr=1,2"])  # fmt: skip
    result = sweep(asked, out=tmp_path / "out", plain=False)
    assert result["trials"]["done"] == 2
    assert result["privacy"]["epsilon_all"] > result["privacy"]["epsilon_one"]


def test_bad_trials_are_recorded_and_the_rest_goes_on(tmp_path, in_process, monkeypatch):
    build = digits.DIGITS.make

    def fails_with_one_model(config):
        if config.model == "logistic":
            raise ZeroDivisionError("planted")
        return build(config)

    monkeypatch.setattr(_trial, "_run", _planted(_trial._run, fails_with_one_model))
    result = sweep(
        small("model=mlp,logistic", "max_norm=0.1,-1"),
        out=tmp_path / "out",
        plain=False,
        validation_public=True,
    )
    assert result["trials"] == {"done": 1, "failed": 1, "refused": 2}
    errors = {row["index"]: row["error"] for row in result["rows"] if row["error"]}
    assert errors[2] == "ZeroDivisionError: planted"
    assert "max_norm: input should be greater than 0" in errors[1]
    assert result["best"]["settings"]["model"] == "mlp"


def _planted(run, build):
    def planted(recipe, trial):
        from reticent.sweep._spec import asked_for

        build(asked_for(recipe, trial.settings).config)
        return run(recipe, trial)

    return planted


def test_asked_again_it_runs_only_what_is_left(tmp_path, in_process):
    first = sweep(small(), out=tmp_path / "out")
    assert in_process == [0, 1, 2, 3, 4]
    (tmp_path / "out" / "trials" / "0002.json").unlink()  # a kill between run and record
    again = sweep(small(), out=tmp_path / "out")
    assert in_process == [0, 1, 2, 3, 4, 2]
    assert again["privacy"] == first["privacy"]  # the finished run was found, not repeated
    assert [row["score"] for row in again["rows"]] == [row["score"] for row in first["rows"]]


def test_a_trial_that_was_killed_goes_on_and_its_lost_steps_stay_counted(tmp_path, in_process, monkeypatch):
    class Killed(BaseException):
        pass

    seen = []

    def loss(model, rows):
        seen.append(1)
        if len(seen) == 2:
            raise Killed
        return digits_loss(model, rows)

    from reticent.recipes import _arrays

    digits_loss = _arrays.cross_entropy
    monkeypatch.setattr(_arrays, "cross_entropy", loss)
    asked = small("lr=1,2", more=["checkpoint_every=1", "show_loss=false"])
    with pytest.raises(Killed):
        sweep(asked, out=tmp_path / "out", plain=False)
    monkeypatch.setattr(_arrays, "cross_entropy", digits_loss)
    result = sweep(asked, out=tmp_path / "out", plain=False)
    assert result["trials"]["done"] == 2
    assert all(read_ledger(p).num_steps == 2 for p in (tmp_path / "out").glob("trials/*/ledger.jsonl"))


def test_another_sweep_or_something_else_in_the_folder_is_refused(tmp_path, in_process):
    sweep(small("lr=1,2"), out=tmp_path / "out", plain=False)
    with pytest.raises(ConfigError, match="holds another sweep"):
        sweep(small("lr=1,3"), out=tmp_path / "out", plain=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not empty") as refused:
        sweep(small("lr=1,2"), out=tmp_path / "full", plain=False)
    assert refused.value.code == "out-exists"


def test_a_damaged_ledger_stops_the_statement(tmp_path, in_process):
    sweep(small("lr=1,2"), out=tmp_path / "out", plain=False)
    path = tmp_path / "out" / "trials" / "0000" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"poisson"', '"full-batch"', 1))
    with pytest.raises(LedgerError):
        sweep(small("lr=1,2"), out=tmp_path / "out", plain=False)


def test_reproducible_runs_have_no_epsilon(tmp_path, in_process):
    result = sweep(small("lr=1,2", more=["noise_seed=1"]), out=tmp_path / "out", plain=False)
    assert result["privacy"]["epsilon_all"] is None
    assert "none (not private)" in (tmp_path / "out" / "table.md").read_text()


def record(score, *, private=True, status="done", **settings):
    about = {"index": 0, "private": private, "status": status, "settings": settings}
    return {**about, "result": {"test_accuracy": score}}


def test_seeds_are_averaged_before_the_best_is_taken():
    records = [record(0.9, lr=1, seed=0), record(0.5, lr=1, seed=1), record(0.8, lr=2, seed=0)]
    entries = _table.average_over_seeds(records, "accuracy")
    assert [(e["settings"], round(e["score"], 6), e["num_seeds"]) for e in entries] == [
        ({"lr": 1}, 0.7, 2),
        ({"lr": 2}, 0.8, 1),
    ]
    assert entries[0]["spread"] == pytest.approx(0.2828, abs=1e-4)


@pytest.mark.parametrize("bad", [record(None), record(float("nan")), record(0.99, status="failed")])
def test_a_trial_without_a_score_is_never_the_best(bad):
    assert _table.score_of(bad, "accuracy") == float("-inf")
    entries = _table.average_over_seeds([bad], "accuracy")
    assert _table.lines(small(), entries) == []


def test_of_losses_the_smaller_is_the_better():
    low, high = ({"status": "done", "result": {"test_loss": value}} for value in (0.1, 0.9))
    assert _table.score_of(low, "loss") > _table.score_of(high, "loss")
    assert _table.as_printed(_table.score_of(low, "loss"), "loss") == 0.1


@pytest.mark.slow
def test_trials_run_in_processes_and_one_that_is_killed_is_one_bad_trial(tmp_path, monkeypatch):
    asked = small("lr=1,2,3")
    real, started = _pool._context(), []

    class Killed:
        """A process that is killed as soon as it runs, if it is the second."""

        def __init__(self, **options):
            self.process = real.Process(**options)

        def __getattr__(self, name):
            return getattr(self.process, name)

        def start(self):
            self.process.start()
            started.append(self)
            if len(started) == 2:
                os.kill(self.process.pid, signal.SIGKILL)

    class Context:
        Process = Killed

    monkeypatch.setattr(_pool, "_context", lambda: Context)
    result = sweep(asked, out=tmp_path / "out", plain=False, jobs=2)
    assert result["trials"] == {"done": 2, "failed": 1, "refused": 0}
    (failed,) = [row for row in result["rows"] if row["status"] == "failed"]
    assert "SIGKILL" in failed["error"]
