"""Every failure mode keeps its test, and the page says what the tests say."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location(
    "failure_modes_page", ROOT / "scripts" / "failure_modes_page.py"
)
page = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(page)


def test_every_row_has_one_test_that_describes_it():
    assert [row.number for row in page.rows()] == list(range(1, 66))


def test_the_page_is_what_the_tests_say():
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


def copied(tmp_path, change):
    for path in page.TESTS.glob("test_*.py"):
        (tmp_path / path.name).write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("def test_fm_07_", "def test_seven_", r"without a test: \[7\]"),
        ("def test_fm_07_", "def test_fm_08_", "two tests"),
        ("Severity: minor", "Severity: who knows", "does not say"),
    ],
)
def test_a_row_that_loses_its_test_or_its_words_is_noticed(tmp_path, old, new, text):
    with pytest.raises(ValueError, match=text):
        page.rows(copied(tmp_path, lambda source: source.replace(old, new)))
