"""Opacus under audit: passes where it is used well, and is shown for what it is where it is not."""

import pytest

pytest.importorskip("opacus")

from benchmarks.audit import opacus_canaries, opacus_rows

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def failed(result):
    return {probe.name for probe in result.probes if not probe.passed}


def test_used_well_it_passes_and_the_bound_has_power(monkeypatch):
    monkeypatch.setattr(opacus_canaries, "CONFIDENCE", 1 - 1e-6)  # of false alarms
    result, _ = opacus_canaries.gradient_canaries(opacus_canaries.used_well, num_canaries=400, num_rows=100)
    assert not result.refuted and not failed(result)
    assert result.bound.epsilon > 0.5 * result.claim.epsilon


def test_shuffled_its_canaries_take_turns_and_its_epsilon_is_too_low():
    result, record = opacus_canaries.gradient_canaries(
        opacus_canaries.shuffled, num_canaries=400, num_rows=100
    )
    assert {"spread of batch sizes", "spread of turns"} <= failed(result)
    assert record["epsilon_without_amplification"] > result.claim.epsilon


def test_its_divisor_tells_the_number_of_rows_and_ours_does_not(monkeypatch):
    claimed = max(opacus_rows.claims().values())
    assert opacus_rows.count_of_rows(opacus_rows.one_step_of_opacus, 200)["epsilon_lower_bound"] > 2 * claimed
    monkeypatch.setattr(opacus_rows, "CONFIDENCE", 1 - 1e-6)  # of a bound above 0
    assert opacus_rows.count_of_rows(opacus_rows.one_step_of_ours, 200)["epsilon_lower_bound"] == 0.0
