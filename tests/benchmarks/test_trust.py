"""Planted bugs: each finds the text that it replaces, once, and the tests that are to notice it."""

from pathlib import Path

import pytest

from benchmarks.trust.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant[0] for mutant in MUTANTS])
def test_a_planted_bug_still_has_its_place(mutant):
    _, file, old, new, tests = mutant
    text = (ROOT / "src" / "reticent" / file).read_text(encoding="utf-8")
    assert text.count(old) == 1
    compile(text.replace(old, new), file, "exec")
    path, _, name = tests.partition(" -k ")[0].partition("::")
    assert name in (ROOT / path).read_text(encoding="utf-8")
