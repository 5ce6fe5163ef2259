"""The pages are true: their code runs, their links lead somewhere, every page can be reached."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import yaml

from tests.support.pages import ROOT, blocks, run_page

# peft's own: it asks a model of transformers for an attribute with an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
PAGES = [page for page in PAGES if "errors.d" not in page.parts]
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *PAGES]
WRITTEN.append(ROOT / "examples" / "README.md")
WITH_CODE = [p for p in WRITTEN if any(b.language in ("python", "sh", "toml") for b in blocks(p))]

MOST_NOT_RUN = 20


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_blocks_that_are_not_run_are_few_and_say_why():
    reasons = [b.not_run for page in WRITTEN for b in blocks(page) if b.not_run is not None]
    reasons = [reason for reason in reasons if not reason.startswith("another library,")]
    assert all(len(reason.split()) > 2 for reason in reasons)
    assert len(reasons) <= MOST_NOT_RUN


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_block_says_its_language(page):
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^ *```(.*)$", text, flags=re.MULTILINE)
    assert len(fences) % 2 == 0
    assert all(opening for opening in fences[::2])
    assert not re.search(r"\n\n    (reticent|python|pip|make|pytest) ", text), (
        "indented: fence it, so that it runs"
    )


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_page_can_be_reached():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)

    def pages(entry: object) -> set[str]:
        match entry:
            case str():
                return {entry}
            case list():
                return set().union(*map(pages, entry))
            case dict():
                return set().union(*map(pages, entry.values()))
        raise TypeError(entry)

    assert pages(config["nav"]) == {str(page.relative_to(DOCS)) for page in PAGES}


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [path for path in sorted((ROOT / "src").rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")],
)
def test_examples_in_docstrings_run(file):
    name = ".".join(file.relative_to(ROOT / "src").with_suffix("").parts)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_lines_of_the_five_tasks_are_counted_right():
    page = (DOCS / "side-by-side.md").read_text(encoding="utf-8")
    libraries = ("Reticent", "Opacus", "opake", "JAX-Privacy")
    counted = []
    for task in page.split("\n## ")[1:]:
        found = dict(re.findall(r'=== "([^"]+)"\n\n(.*?)\n    ```$', task, flags=re.MULTILINE | re.DOTALL))
        counted.append([lines_of_code(found[name]) if name in found else "–" for name in libraries])
    table = re.search(r"\n\|---.*?\n\n", page, flags=re.DOTALL)
    assert table is not None
    stated = [row.strip("| ").split(" | ")[1:] for row in table[0].strip().split("\n")[1:]]
    assert stated == [[str(cell) for cell in row] for row in counted]


def lines_of_code(tab: str) -> int:
    code = [line.strip() for line in tab.partition("```python\n")[2].split("\n")]
    return sum(bool(line) and not line.startswith(("import ", "from ", "#")) for line in code)
