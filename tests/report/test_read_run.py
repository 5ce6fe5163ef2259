"""Reading a run folder: what is refused, and what may be missing."""

import json

import pytest

from reticent.errors import ConfigError, LedgerError
from reticent.report import read_run
from reticent.report._run import curve
from tests.report.runs import make_run


def test_a_whole_run_is_read(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert run.about.recipe == "fashion-mnist"
    assert run.ledger is not None and run.ledger.num_steps == 40
    assert run.num_ledger_lines == len((tmp_path / "run" / "ledger.jsonl").read_text().splitlines())
    assert run.twin is not None and run.twin.metrics


def test_metrics_result_and_twin_may_be_missing(tmp_path):
    folder = make_run(tmp_path / "run", twin=False, finished=False)
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert (run.metrics, run.result, run.twin) == ((), None, None)


def test_a_torn_last_line_of_the_metrics_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run")
    before = read_run(folder).metrics
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as f:
        f.write('{"step": 41, "spl')
    assert read_run(folder).metrics == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", "{", r"run\.json' is not JSON"),
        ("run.json", '{"run_id": "\\ud800"}', r"run\.json' is not JSON"),
        ("run.json", "[]", r"run\.json' is not in the format"),
        ("run.json", '{"format": 2}', r"format: .*1; run_id: Field required"),
        (
            "metrics.jsonl",
            '{"step": 1, "split": "test"}\nnonsense\n',
            r"metrics\.jsonl', line 2, is not JSON",
        ),
        ("metrics.jsonl", '{"step": "many", "split": "test"}\n', r"line 1, is not in the format.*step"),
        ("result.json", '{"private": "maybe"}', r"result\.json' is not in the format.*private"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, text, message):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as refused:
        read_run(folder)
    assert refused.value.code == "run-folder"


def test_bytes_that_are_not_text_are_refused(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_run(folder)


def test_a_missing_folder_and_a_folder_of_something_else_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no run folder at .* \[not-a-run\]"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"it has no run\.json"):
        read_run(tmp_path)


def test_a_private_run_without_its_ledger_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no epsilon can be stated .*\[run-without-ledger\]"):
        read_run(make_run(tmp_path / "run", ledger=False))


def test_an_edited_ledger_is_refused(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "ledger.jsonl"
    text = path.read_text(encoding="utf-8")
    edited = text.replace("1e-05", "1e-06", 1)
    assert edited != text
    path.write_text(edited, encoding="utf-8")
    with pytest.raises(LedgerError):
        read_run(folder)


def test_a_step_that_was_evaluated_again_after_a_resume_counts_once(tmp_path):
    folder = make_run(tmp_path / "run", ema=False)
    again = {"step": 40, "split": "test", "weights": "last", "accuracy": 0.5}
    other = {"step": 41, "split": "train", "weights": "last", "accuracy": 0.9}
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps(again) + "\n" + json.dumps(other) + "\n")
    points = curve(read_run(folder).metrics, "last")
    assert points[-1] == (40, 0.5)
    assert [step for step, _ in points] == sorted({step for step, _ in points})
