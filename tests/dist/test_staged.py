"""Batch sizes that change, on two ranks: each stage's sums are one process's, also after a resume."""

import numpy as np
import pytest

from reticent.account.ledger import read_ledger
from reticent.dist import ALONE
from reticent.report import verify_run
from tests.dist import ranks, staged
from tests.train.test_stages import PLAN

pytestmark = [pytest.mark.dist, pytest.mark.slow]
MODULE = "tests.dist.staged"


@pytest.fixture
def double():
    """`staged.clipped_sums` makes float64 the default, in its own process as a rule."""
    import torch

    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def test_every_stages_sums_and_epsilon_are_those_of_one_process(tmp_path, double):
    alone = staged.clipped_sums(ALONE, tmp_path / "alone")
    tasks = ("clipped_sums", "clipped_sums_of_shards")
    for of_rank in ranks.results("+".join(tasks), tmp_path / "ranks", size=2, module=MODULE):
        for task in tasks:
            found = of_rank[task]
            for ours, theirs in zip(found["sums"], alone["sums"], strict=True):
                for mine, wanted in zip(ours, theirs, strict=True):
                    np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-10)
            assert (found["epsilon"], found["spent"]) == (alone["epsilon"], alone["spent"])
    assert alone["epsilon"] == PLAN.epsilon().epsilon and [n for _, n in alone["spent"]] == [3, 3, 2]


@pytest.mark.parametrize(("kind", "stop"), [("replicas", 3), ("shards", 2)])
def test_two_ranks_go_on_at_a_border_and_before_one(tmp_path, monkeypatch, kind, stop):
    """Rows in a sum are whole numbers of its stage's size, over its own divisor."""
    monkeypatch.setenv("KIND", kind)
    ended = ranks.start(f"stop_at_{stop}", tmp_path, size=2, module=MODULE)
    said = [process.communicate(timeout=120)[1].decode() for process in ended]
    assert [process.returncode for process in ended] == [3, 3], said
    assert read_ledger(tmp_path / "run" / "ledger.jsonl").segments() == PLAN.segments(stop)
    (tmp_path / "meeting").unlink()
    for found in ranks.results("go_on", tmp_path, size=2, module=MODULE):
        assert [step for step, _ in found["rows"]] == list(range(stop, 8))
        for step, rows in found["rows"]:
            assert rows == pytest.approx(round(rows), abs=1e-3)
            assert (0 <= round(rows) < 30, 24 < round(rows) < 64, round(rows) == 64)[
                0 if step < 3 else 1 if step < 6 else 2
            ]
        assert found["epsilon"] == PLAN.epsilon().epsilon and found["num_lost"] == stop % 2
    assert read_ledger(tmp_path / "run" / "ledger.jsonl").segments() == PLAN.segments()
    assert verify_run(tmp_path / "run").sound
