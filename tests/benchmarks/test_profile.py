"""`benchmarks.profile`: shares of operations add up to the ratio."""

import pytest

from benchmarks.profile import measure

pytestmark = pytest.mark.slow


def test_shares_of_the_plain_step_add_up_to_one():
    found = measure("tiny", "reticent-flat", steps=1)
    plain = sum(row["non-private"] for row in found["rows"])
    private = sum(row["reticent-flat"] for row in found["rows"])
    assert plain == pytest.approx(1.0, abs=1e-9)
    assert private == pytest.approx(found["ratio"], abs=1e-9)
    assert found["rows"][-1]["operation"].startswith("(all others")
    assert any(row["operation"] == "aten::addmm" for row in found["rows"])
