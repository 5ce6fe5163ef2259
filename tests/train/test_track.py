"""What a person and a tracker are told of a run: epsilon, progress, test scores; nothing of the rows."""

import io
import json
import os
import sys
from datetime import datetime
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from rich.console import Console

from reticent.errors import ConfigError
from reticent.train import Evaluation, TrainSettings, _track, resume, train
from reticent.train._progress import memory_in_words
from tests.train.joint import cross_entropy, make_data, make_model, make_plan


def scores(model, rows):
    x, y = rows
    return {"accuracy": (model(x).argmax(1) == y).double()}


def run(out, *, log="none", console=None, physical_batch_size=16, **settings):
    model = make_model()
    return train(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5),
        plan=make_plan(num_steps=6),
        dataset=make_data(),
        loss_per_example=cross_entropy,
        out=out,
        physical_batch_size=physical_batch_size,
        evaluation=Evaluation(dataset=make_data(seed=1), scores=scores),
        settings=TrainSettings(eval_every=3, log=log, **settings),
        console=console,
    )


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self, figures):
        self.figures = figures

    def scalar(self, name, value, *, step):
        self.figures.append((name, step, value))

    def close(self):
        self.figures.append("closed")


@pytest.fixture
def kept(monkeypatch):
    figures = []
    monkeypatch.setattr(_track, "find_spec", lambda name: object())
    monkeypatch.setattr(_track, "_open", lambda tracking, folder: Kept(figures))
    return figures


def test_a_tracker_hears_of_epsilon_and_test_scores_and_of_nothing_else(kept, tmp_path):
    result = run(tmp_path / "run", log="mlflow")
    assert kept.pop() == "closed"
    assert {(name, step) for name, step, _ in kept} == {
        *(("privacy/epsilon", step) for step in range(1, 7)),
        *(("test/accuracy_last", step) for step in (3, 6)),
    }
    spent = [value for name, _, value in kept if name == "privacy/epsilon"]
    assert spent == sorted(spent) and spent[-1] == pytest.approx(result.epsilon.epsilon)


def test_a_loss_that_was_asked_for_is_named_for_what_it_is(kept, tmp_path):
    run(tmp_path / "run", log="mlflow", show_loss=True)
    names = {figure[0] for figure in kept if figure != "closed"}
    assert names == {"privacy/epsilon", "test/accuracy_last", "not_private/loss"}


def test_a_tracker_that_fails_costs_the_run_nothing(monkeypatch, tmp_path):
    def gone(tracking, folder):
        raise ConnectionError("no server")

    monkeypatch.setattr(_track, "find_spec", lambda name: object())
    monkeypatch.setattr(_track, "_open", gone)
    with pytest.warns(RuntimeWarning, match=r"tracker failed \(ConnectionError: no server\)") as told:
        assert run(tmp_path / "run", log="mlflow").num_steps == 6
    assert len(told) == 1


def test_a_package_that_is_missing_is_said_before_there_is_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr(_track, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'reticent\[track\]'.*\[missing-library\]"):
        run(tmp_path / "run", log="tensorboard")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"log must be one of none, tensorboard, mlflow, got 'wandb'"):
        TrainSettings(log="wandb")


def test_the_live_view_says_epsilon_rows_at_once_and_memory(tmp_path):
    out = io.StringIO()
    result = run(tmp_path / "run", console=Console(file=out, width=100))
    told = " ".join(out.getvalue().split())
    assert (
        "6/6" in told
        and "physical batch size" in told
        and "MiB resident" in told
        and "test, last weights accuracy" in told
    )
    shown = float(told.split("epsilon ")[1].split()[0])
    assert result.epsilon.epsilon <= shown <= result.epsilon.epsilon + 0.01


def test_memory_of_a_gpu_is_this_process_s_own_now_and_at_its_peak(monkeypatch):
    sizes = {"memory_allocated": 3 << 30, "max_memory_allocated": 5 << 30}
    for name, size in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 80 << 30))
    shown = memory_in_words(torch.device("cuda:1"))
    assert shown == "3.0 allocated, 5.0 at peak, of 80.0 GiB on cuda:1"


def test_the_physical_batch_size_is_the_setting_not_what_was_drawn(tmp_path):
    out = io.StringIO()
    run(tmp_path / "run", console=Console(file=out, width=100), physical_batch_size=7)
    assert "physical batch size 7 " in " ".join(out.getvalue().split())


ABOUT = {
    "run_id": "first",
    "created": "2026-11-26T10:00:00+00:00",
    "recipe": "digits",
    "private": True,
    "config": {"lr": 0.5, "data": "/home/me/patients.csv", "test_data": "patients2.csv", "log": "mlflow"},
    "plan": {"noise_multiplier": 1.5, "delta": 1e-5, "num_steps": 9},
    "data": {"name": "file", "sha256": "00"},
}
BEGAN = datetime.fromisoformat(ABOUT["created"]).timestamp()


def test_event_files_are_stamped_by_steps_and_not_told_where_data_lie(monkeypatch, tmp_path):
    writer = MagicMock()
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=lambda at: writer)
    )
    board = _track._TensorBoard(tmp_path, ABOUT)
    board.scalar("privacy/epsilon", 2.0, step=7)
    board.close()
    writer.add_scalar.assert_called_once_with("privacy/epsilon", 2.0, 7, walltime=BEGAN + 7)
    (_, text, _, stamp), _ = writer.add_text.call_args
    assert stamp == BEGAN and "| lr | 0.5 |" in text and "patients" not in text and "00" not in text
    writer.close.assert_called_once_with()


@pytest.mark.parametrize("known", [False, True])
def test_mlflow_is_stamped_by_steps_and_goes_on_with_a_run_that_it_knows(monkeypatch, tmp_path, known):
    client = MagicMock()
    client.search_runs.return_value = [SimpleNamespace(info=SimpleNamespace(run_id="there"))] if known else []
    client.create_run.return_value.info.run_id = "made"
    opened = MagicMock(return_value=client)
    monkeypatch.setattr(_track, "import_module", lambda name: SimpleNamespace(MlflowClient=opened))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    flow = _track._MLflow(tmp_path, ABOUT)
    flow.scalar("privacy/epsilon", 2.0, step=7)
    flow.close()
    opened.assert_called_once_with(tracking_uri="http://tracker")
    name, began = "there" if known else "made", round(1000 * BEGAN)
    client.log_metric.assert_called_once_with(name, "privacy/epsilon", 2.0, timestamp=began + 7000, step=7)
    client.set_terminated.assert_called_once_with(name, end_time=began + 7000)
    assert client.create_run.called is not known
    assert not {"data", "test_data"} & {call.args[1] for call in client.log_param.call_args_list}


def started(folder):
    created = json.loads((folder / "run.json").read_text(encoding="utf-8"))["created"]
    return datetime.fromisoformat(created).timestamp()


def test_tensorboard_is_told_no_time_that_a_step_took(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path / "run", log="tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {"privacy/epsilon", "test/accuracy_last"}
    found = [event for tag in tags["scalars"] for event in events.Scalars(tag)]
    assert found and all(event.wall_time == started(tmp_path / "run") + event.step for event in found)


@pytest.mark.filterwarnings("ignore")  # its own, of its data base
def test_mlflow_is_told_no_time_that_a_step_took_and_goes_on_with_a_resumed_run(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run"
    run(folder, log="mlflow")
    began = round(1000 * started(folder))
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("reticent").experiment_id])
    assert set(found.data.metrics) == {"privacy/epsilon", "test/accuracy_last"}
    for name in found.data.metrics:
        history = client.get_metric_history(found.info.run_id, name)
        assert all(metric.timestamp == began + 1000 * metric.step for metric in history)
    assert (found.info.start_time, found.info.end_time) == (began, began + 6000)
    os.remove(folder / "result.json")
    model = make_model()
    resume(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5),
        dataset=make_data(),
        loss_per_example=cross_entropy,
        out=folder,
        evaluation=Evaluation(dataset=make_data(seed=1), scores=scores),
    )
    assert len(client.search_runs([client.get_experiment_by_name("reticent").experiment_id])) == 1
