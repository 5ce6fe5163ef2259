"""docs/errors.md lists exactly the codes that the source raises."""

import ast
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("errors_page", ROOT / "scripts" / "errors_page.py")
assert SPEC is not None and SPEC.loader is not None
errors_page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(errors_page)


def codes_in(source: str) -> set[str]:
    """Codes a module raises: `code="..."` anywhere, and the last argument of records' `_require`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        if isinstance(node.func, ast.Name) and node.func.id == "_require" and len(node.args) == 3:
            given.append(node.args[2])
        for value in given:
            found |= {part.value for part in ast.walk(value) if isinstance(part, ast.Constant)}
    return found


def codes_of_the_source() -> set[str]:
    return set().union(*(codes_in(p.read_text(encoding="utf-8")) for p in (ROOT / "src").rglob("*.py")))


def test_codes_are_found_in_every_way_they_are_written():
    source = """
raise ConfigError("x", code="one")
_require(ok, "message", "two")
raise ConfigError("x", code="three" if y else "four")
"""
    assert codes_in(source) == {"one", "two", "three", "four"}


def test_every_code_in_the_source_is_a_heading_and_every_heading_a_code():
    headings, codes = set(errors_page.sections()), codes_of_the_source()
    assert codes - headings == set(), "raised but not explained in docs/errors.d/"
    assert headings - codes == set(), "explained in docs/errors.d/ but never raised"


def test_the_page_is_what_its_parts_say():
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == errors_page.page()


def test_a_code_explained_twice_keeps_both_explanations(tmp_path):
    (tmp_path / "a.md").write_text("# Room a\n\n## same\n\nFirst.\n\n## only-a\nA.\n", encoding="utf-8")
    (tmp_path / "b.md").write_text("## same\n\nSecond.\n", encoding="utf-8")
    assert errors_page.sections(tmp_path) == {"same": "First.\n\nSecond.", "only-a": "A."}
