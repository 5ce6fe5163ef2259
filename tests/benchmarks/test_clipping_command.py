"""The benchmark's command: what it prints, what it refuses, and that a failing engine ends nothing."""

import json
import time
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from benchmarks import clipping, measure, worker
from benchmarks.cases import CASES
from benchmarks.engines import ENGINES, Engine
from benchmarks.measure import Settings, compare, groups
from benchmarks.work import Case, Skip, Work

FIGURES = {
    "seconds",
    "time_ratio",
    "time_ratio_range",
    "memory_mib",
    "memory_ratio",
    "max_error",
    "page_faults",
}


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    clipping.main(list(argv))
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        clipping.main(list(argv))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_list_names_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    clipping.main(["--list"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CASES)


def test_an_unknown_case_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "--case", "gpt5")
    assert "gpt5" in said and all(name in said for name in CASES)


def test_an_unknown_engine_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "--case", "tiny", "--engines", "reticent-flat,magic")
    assert "magic" in said and all(name in said for name in ENGINES)


def test_no_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--rounds" in refusal(capsys, "--case", "tiny", "--rounds", "0")


def test_a_case_whose_packages_are_missing_says_how_to_install_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(about="", build=CASES["tiny"].build, needs=("no_such_package",))
    monkeypatch.setattr(clipping, "CASES", MappingProxyType({**CASES, "tiny": case}))
    said = refusal(capsys, "--case", "tiny")
    assert "no_such_package" in said and "pip install" in said


def test_quick_runs_two_engines_and_names_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "tiny.json"
    results = run(capsys, "--case", "tiny", "--rounds", "2", "--quick", "--json", "--out", str(out))
    assert json.loads(out.read_text()) == results
    assert results["case"] == "tiny" and results["rounds"] == 2
    assert results["date"][:2] == "20" and results["processor"]
    assert str(tmp_path) not in results["command"]  # a folder says nothing to others
    assert 0 < results["num_clipped"] < 6  # about half of the six examples
    for engine in ENGINES:
        if engine in ("non-private", "reticent-flat"):
            assert results[engine].keys() == FIGURES
        else:
            assert results[engine] == {"skipped": "quick"}
    assert results["reticent-flat"]["max_error"] < 1e-4
    assert results["non-private"]["max_error"] is None
    low, high = results["reticent-flat"]["time_ratio_range"]
    assert 0 < low <= results["reticent-flat"]["time_ratio"] <= high


def test_picked_engines_run_and_a_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    clipping.main(["--case", "tiny", "--rounds", "1", "--engines", "fastdp"])
    said = capsys.readouterr().out
    assert "non-private" in said and "not picked" in said
    assert "RETICENT_FASTDP" in said  # not installed: says what to do


def test_a_process_over_its_memory_limit_says_so() -> None:
    # "could not create a primitive" is how oneDNN says that it was refused memory.
    with pytest.raises(RuntimeError, match=r"failed: .*([Mm]emory|could not create a primitive)"):
        compare(Settings(case="tiny", rounds=1, memory_limit=0.05), lambda line: None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        clipping.main(["--case", "tiny", "--device", "cuda"])
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_a_killed_process_is_reported() -> None:
    with measure.worker(60.0) as gone:
        gone.process.kill()
        assert gone.ask({}) == {"skipped": "killed, most likely for its memory"}


def test_a_process_that_does_not_answer_is_reported() -> None:
    with measure.worker(0.01) as late:
        request = {
            "memory_limit": 20,
            "threads": 1,
            "case": "tiny",
            "seed": 0,
            "kinds": ["flat"],
            "device": "cpu",
        }
        assert late.ask({**request, "reference": "unused"}) == {"skipped": "no answer in 0 s"}
    assert late.process.poll() is not None


def test_peers_are_timed_one_at_a_time() -> None:
    together = groups(list(ENGINES))
    assert [e for group in together for e in group] == [e for e in ENGINES if e != "non-private"]
    peers = [group for group in together if any(ENGINES[e].peer for e in group)]
    assert peers and all(len(group) == 1 for group in peers)
    assert all(1 <= len(group) <= measure.AT_ONCE for group in together)


def test_a_missing_peer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Skip, match="not installed: pip install no-such-package"):
        worker._install_hint(Engine(make=ENGINES["opacus"].make, needs=("no_such_package",)))


def _forgets_to_clip(work: Work, max_norm: float):
    return ENGINES["non-private"].make(work, max_norm)


def _fails(work: Work, max_norm: float):
    raise TypeError("no such layer\nand more")


def test_a_wrong_engine_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved = tmp_path / "reference.pt"
    worker.reference(worker.build("tiny", 0)).save(saved)
    request = {"case": "tiny", "seed": 0, "reference": str(saved), "engine": "wrong", "device": "cpu"}
    monkeypatch.setattr(worker, "ENGINES", {"wrong": Engine(make=_forgets_to_clip)})
    _, ready = worker._prepare(request)
    assert ready["skipped"].startswith("wrong by ") and ready["skipped"].endswith(" C")
    assert ready["max_error"] > 0.1


def test_an_error_is_told_in_one_line() -> None:
    with pytest.raises(TypeError) as raised:
        _fails(worker.build("tiny", 0), 1.0)
    assert worker.one_line(raised.value) == "TypeError: no such layer"
    assert worker.one_line(ImportError("no x from y (/home/me/y.py)")) == "ImportError: no x from y"


def test_weights_and_batch_depend_on_the_seed_alone() -> None:
    one, same, other = (worker.build("tiny", seed) for seed in (0, 0, 1))
    assert torch.equal(one.batch[0], same.batch[0]) and not torch.equal(one.batch[0], other.batch[0])
    for name, p in one.trainable().items():
        assert torch.equal(p, same.trainable()[name])


def test_short_steps_are_timed_until_the_time_is_full_and_long_ones_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = iter([0.0, 0.2, 0.2, 0.25, 0.25, 0.29, 0.29, 0.35, 10.0, 11.0])
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(ends))
    kept: list[object] = []
    found = worker.timed(dict, kept, "cpu")
    assert found["seconds"] == pytest.approx(0.05)  # of 0.05, 0.04, 0.06; 0.2 was cold
    assert worker.timed(dict, kept, "cpu")["seconds"] == 1.0
    assert kept == [{}]


def test_memory_that_is_mapped_anew_is_counted() -> None:
    kept: list[torch.Tensor] = []
    mapped = worker.timed(lambda: {"": torch.ones(1 << 26)}, kept, "cpu")  # 256 MiB, above what a heap takes
    assert mapped["page_faults"] > (1 << 28) / 4096 / 600  # 512 of them at once where the system allows it
    nothing = worker.timed(lambda: time.sleep(0.01) or {}, kept, "cpu")
    assert nothing["page_faults"] < mapped["page_faults"]
