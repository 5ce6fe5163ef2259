"""`benchmarks.profile`: shares of operations add up to the ratio."""

import pytest

from benchmarks.profile import measure

pytestmark = pytest.mark.slow


def test_shares_of_the_plain_step_add_up_to_one():
    found = measure("tiny", "reticent-flat", steps=1)
    plain = sum(row["non-private"] for row in found["rows"])
    private = sum(row["reticent-flat"] for row in found["rows"])
    assert plain == pytest.approx(1.0, abs=0.05)  # rows below a thousandth are left out
    assert private == pytest.approx(found["ratio"], rel=0.05)
    assert any(row["operation"] == "aten::addmm" for row in found["rows"])
