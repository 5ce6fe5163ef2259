"""A real browser, driven over a pipe by its own debugging protocol: no driver and no package beside Chromium.

`browser()` skips the test where there is no Chromium (Debian: `apt-get install chromium`).
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")

# Every text that is shown against what is behind it, and every line of a plot: WCAG 2.2, level AA.
CONTRAST = r"""
(() => {
  const numbers = (color) => (color.match(/[\d.]+/g) || []).map(Number);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const over = (top, under, alpha) => under.map((u, k) => alpha * top[k] + (1 - alpha) * u);
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(e).backgroundColor);
      if (a > 0) layers.push([[r, g, b], a]);
      if (a === 1) break;
    }
    return layers.reverse().reduce((under, [top, a]) => over(top, under, a), [255, 255, 255]);
  };
  const opacity = (element) => {
    let found = 1;
    for (let e = element; e; e = e.parentElement) found *= Number(getComputedStyle(e).opacity);
    return found;
  };
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  const note = (element, color, least, text) => {
    const back = behind(element), [r, g, b, a = 1] = numbers(color);
    const got = ratio(over([r, g, b], back, a * opacity(element)), back);
    const shown = text.trim().slice(0, 40);
    if (got < least) found.push(`${element.tagName} '${shown}': ${got.toFixed(2)} < ${least}`);
  };
  let seen = 0;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.data;
    if (!text.trim() || element.matches("script, style, title, desc, noscript")) continue;
    if (!element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (element.getClientRects().length === 0) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    note(element, element instanceof SVGElement ? style.fill : style.color, large ? 3 : 4.5, text);
    seen += 1;
  }
  for (const line of document.querySelectorAll("svg path, svg use")) {
    const stroke = line.style.stroke;
    if (stroke.includes("--series")) note(line, getComputedStyle(line).stroke, 3, `a line of ${stroke}`);
  }
  return { seen, found };
})()
"""

# Wider than the window, outside of what scrolls by itself.
CUT_OFF = r"""
(() => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const out = [...document.querySelectorAll("body *")].filter((e) =>
    e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) &&
    !e.closest(".wide, .skip, .unseen, svg, .md-typeset__scrollwrap, pre") &&
    e.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
  return { wide, out: out.map((e) => `${e.tagName} ${e.textContent.trim().slice(0, 40)}`) };
})()
"""


class Page:
    """One page in the browser.

    Attributes:
        problems: console messages of level warning or error, and uncaught errors.
        requests: every address that was asked for.
    """

    def __init__(self, read, write):
        self._read, self._write, self._buffer, self._number = read, write, b"", 0
        self.problems, self.requests = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """One command of the protocol, and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self, timeout=60.0):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], timeout)
            assert ready, "the browser does not answer"
            self._buffer += os.read(self._read, 1 << 20)
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method, told):
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(str(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("warning", "error", "assert"):
                self.problems.append(str(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("warning", "error"):
                self.problems.append(told["entry"]["text"])

    def open(self, url, *, width=1280, height=900, dark=False):
        """Go there, in a window of that size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition, *, seconds=60.0):
        """Until an expression in the page is true."""
        until = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < until, f"never true: {condition}"
            time.sleep(0.05)

    def press(self, key, *, code=0, text=""):
        """One key, down and up."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **typed)

    def shoot(self, path: Path):
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def elsewhere(self):
        """Addresses that were asked for outside of this machine."""
        return [url for url in self.requests if urlsplit(url).hostname not in (None, "", "127.0.0.1")]


@contextmanager
def browser(profile: Path):
    """A page of a headless Chromium that keeps its files in `profile`."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    pipes = [os.pipe(), os.pipe()]  # to the browser, from it
    theirs, ours = (pipes[0][0], pipes[1][1]), (pipes[0][1], pipes[1][0])
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in theirs]
    process = subprocess.Popen(
        [
            *("bash", "-c", f'exec "$0" "$@" 3<&{high[0]} 4>&{high[1]}', found),
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"),
            *("--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"),
        ],
        pass_fds=high,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in (*theirs, *high):
        os.close(fd)
    try:
        yield Page(ours[1], ours[0])
    finally:
        process.kill()
        process.wait(timeout=30)
        for fd in ours:
            os.close(fd)
