"""The site as it is built: error codes lead somewhere, contrast, width, keyboard, nothing from elsewhere."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading

import pytest

from scripts.site_hooks import codes_in, with_codes
from tests.support.browser import CONTRAST, CUT_OFF, browser
from tests.support.pages import ROOT

CODES = frozenset({"clip-norm", "num-steps", "config"})
PAGES = ("", "quick-start/", "side-by-side/", "errors/", "failure-modes/", "api/clip/")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (
            '<code><a>ConfigError</a>[<span title="x">clip</span> - norm]</code>',
            '<code><a>ConfigError</a>[<a href="../e#clip-norm">clip-norm</a>]</code>',
        ),
        (
            "[num - steps, config]",
            '[<a href="../e#num-steps">num-steps</a>, <a href="../e#config">config</a>]',
        ),
        ("Mapping[str, Tensor]", "Mapping[str, Tensor]"),
        ("x[a - b]", "x[a - b]"),
    ],
)
def test_error_codes_are_spelled_right_and_linked_and_nothing_else_is_changed(shown, expected):
    assert with_codes(shown, codes=CODES, errors_url="../e") == expected


def test_codes_are_the_headings_of_the_errors_page():
    assert codes_in("# Errors\n\n## clip-norm\ntext\n### no\n## config\n") == {"clip-norm", "config"}
    assert len(codes_in((ROOT / "docs" / "errors.md").read_text(encoding="utf-8"))) > 200


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass

    def copyfile(self, source, outputfile):
        try:
            super().copyfile(source, outputfile)
        except BrokenPipeError:  # the browser went on to the next page
            pass


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", out],
        check=True,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": paths},
    )
    return out


@pytest.fixture(scope="module")
def address(built):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=built))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.slow
def test_no_error_code_of_the_reference_is_an_expression(built):
    codes = codes_in((ROOT / "docs" / "errors.md").read_text(encoding="utf-8"))
    linked = 0
    for file in (built / "api").rglob("index.html"):
        text = re.sub(r"<[^>]+>", "", file.read_text(encoding="utf-8"))
        for found in re.findall(r"(?:Error|Examples|Model|Layer)\[([\w ,-]+)\]", text):
            assert set(found.split(", ")) <= codes, (file, found)
            linked += 1
    assert linked > 100


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_readable_fits_and_loads_nothing_from_elsewhere(page, address, name, width, dark):
    page.open(address + name, width=width, dark=dark)
    page.run("localStorage.clear()")  # the theme keeps the scheme of the first visit
    page.open(address + name, width=width, dark=dark)
    scheme = page.run("document.body.getAttribute('data-md-color-scheme')")
    assert scheme == ("slate" if dark else "default")
    # Of what is moved out of the window until it is asked for, contrast means nothing.
    hidden = ".md-skip, .md-search, .md-top" + (", .md-sidebar" if width < 600 else "")
    page.run(f"document.querySelectorAll('{hidden}').forEach((e) => {{ e.style.display = 'none'; }})")
    contrast = page.run(CONTRAST)
    assert contrast["seen"] > 40 and contrast["found"] == []
    assert page.run(CUT_OFF) == {"wide": 0, "out": []}
    assert page.problems == [] and page.elsewhere() == []


@pytest.mark.slow
def test_the_keyboard_reaches_text_and_search(page, address):
    # Not blocks of code: the theme lets Tab stop there only where there is a mouse, which a server has not.
    page.open(address + "quick-start/")
    page.press("Tab", code=9)
    assert page.run("document.activeElement.matches('.md-skip')")
    page.open(address + "quick-start/")
    page.press("f", code=70, text="f")
    page.wait("document.activeElement.matches('.md-search__input')")
    assert page.run("document.querySelector('.md-search').getAttribute('aria-label')") == "Search"
