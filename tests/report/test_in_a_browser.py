"""The pages in a real browser: nothing in its console, nothing from elsewhere, contrast, width, keyboard."""

import json
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest

from reticent.report import Explorer, compare, starting_values, write_comparison, write_report
from tests.report.runs import make_run
from tests.report.test_explore import SMALL
from tests.support.browser import CONTRAST, CUT_OFF, browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> address of a page of each kind, with all that it may hold."""
    folder = tmp_path_factory.mktemp("runs")
    one = make_run(folder / "one", run_id="first", lost=3)
    layer = {"form": "Outer", "method": "gram", "others": ["keep"], "bytes": 2048.0, "seconds": 1e-6}
    about = json.loads((one / "run.json").read_text(encoding="utf-8"))
    about["layers"] = [{**layer, "parameter": f"blocks.{k}.attention.in_proj_weight"} for k in range(3)]
    (one / "run.json").write_text(json.dumps(about), encoding="utf-8")
    (one / "audit.json").write_text(json.dumps(AUDIT), encoding="utf-8")
    bad = make_run(folder / "a-run-with-a-long-name", run_id="second", reproducible=True, twin=False)
    explorer = Explorer(starting_values(SMALL))
    thread = threading.Thread(target=explorer.serve)
    thread.start()
    yield {
        "report": write_report(one).path.as_uri(),
        "not private": write_report(bad).path.as_uri(),
        "compare": write_comparison(compare([one, bad]), folder / "compare.html").as_uri(),
        "explorer": explorer.url,
    }
    explorer.close()
    thread.join(timeout=10)


AUDIT = {
    "format": 1,
    "target": "one",
    "passed": True,
    "refuted": False,
    "epsilon_claimed": 2.5,
    "epsilon_lower_bound": 1.9,
    "epsilon_attack_at_most": 2.8,
    "confidence": 0.999,
    "delta": 1e-5,
    "method": "a sentence about it",
    "num_canaries": 200,
    "probes": [{"name": "noise size", "passed": True, "finding": "0.99 of the claimed standard deviation"}],
    "curve": {
        "about": "one step",
        "claimed": [[0.001, 0.01], [0.1, 0.4], [1.0, 1.0]],
        "measured": [[0.001, 0.008, 0.005, 0.02], [0.1, 0.38, 0.35, 0.41], [1.0, 1.0, 0.99, 1.0]],
    },
}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["report", "not private", "compare", "explorer"])
def test_it_is_readable_fits_and_loads_nothing_from_elsewhere(page, pages, name, width, dark):
    page.open(pages[name], width=width, dark=dark)
    if name == "explorer":
        page.wait("document.querySelectorAll('#rows dd').length > 5")
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    contrast = page.run(CONTRAST)
    assert contrast["seen"] > 20 and contrast["found"] == []
    assert page.run(CUT_OFF) == {"wide": 0, "out": []}
    assert page.problems == [] and page.elsewhere() == []


def test_the_checks_can_fail(page, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<body style="background: #fff"><p style="color: #999">grey</p><p style="width: 4000px">wide</p>'
        '<p style="color: #000">black</p><script>console.error("no")</script>',
        encoding="utf-8",
    )
    before = len(page.problems)
    page.open(bad.as_uri(), width=390)
    assert [line.split("'")[1] for line in page.run(CONTRAST)["found"]] == ["grey"]
    assert "P wide" in page.run(CUT_OFF)["out"]
    assert len(page.problems) == before + 1
    page.problems.clear()


def test_paper_is_white_whatever_the_screen_is(page, pages):
    page.open(pages["report"], dark=True)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    page.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.run(CONTRAST)["found"] == []
    page.call("Emulation.setEmulatedMedia", media="", features=[])


def test_the_explorer_is_used_by_keyboard_and_says_what_is_wrong(page, pages):
    page.open(pages["explorer"])
    page.wait("document.getElementById('results').getAttribute('aria-busy') === 'false'")
    shown = "document.querySelector('#rows dd span').textContent"
    before = page.run(shown)
    page.press("Tab", code=9)
    assert page.run("document.activeElement.className") == "skip"
    page.press("Tab", code=9)
    assert page.run("document.activeElement.id") == "epsilon"
    page.press("Tab", code=9)  # its slider
    page.press("ArrowLeft", code=37)
    page.wait(f"{shown} !== {json.dumps(before)}")
    assert float(page.run(shown)) > float(before)  # less epsilon, more noise
    page.run("document.getElementById('expected_batch_size').focus()")
    page.press("End", code=35)
    page.press("0", code=48, text="0")
    page.wait("!document.getElementById('problem').hidden")
    assert "must not be larger than" in page.run("document.getElementById('problem').textContent")
    assert page.run("document.querySelectorAll('#rows dd').length") == 0  # no numbers of other settings
    assert page.problems == []


def test_the_command_serves_until_it_is_interrupted():
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as on a terminal
        "from reticent.cli import main; main(['plan', '--open', '--no-browser', '--epsilon', '2.5'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        url = running.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=60) as reply:
            assert 'value="2.5"' in reply.read().decode()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 0
        assert running.stdout.read() == ""
