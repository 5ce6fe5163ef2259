"""Addresses outside of the pages: well formed, encrypted, written in one way, of hosts that are known.

Nothing is fetched. Whether the other end still answers is not checked.
"""

import re
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.docs.test_pages import DOCS, WRITTEN, name_of
from tests.support.pages import ROOT

CODE = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").glob("*.py")])
READ = [*WRITTEN, ROOT / "CHANGELOG.md", *sorted((DOCS / "errors.d").glob("*.md")), *CODE]

# What links may go to. A new host is a line here, so that somebody has looked at it.
HOSTS = {
    "arxiv.org",
    "github.com",
    "keepachangelog.com",
    "semver.org",
}
# Of data sets, in the code alone: fetched, and checked by SHA-256.
FETCHED = {"storage.googleapis.com", "www.cs.toronto.edu", "archive.ics.uci.edu"}
OURSELVES = {"127.0.0.1", "localhost"}

_ADDRESS = re.compile(r"https?://[^\s<>\"'`\])}|\\]+")
_PAPER = re.compile(r"(?:arXiv:|arxiv\.org/abs/)([\w.-]*\d)", re.IGNORECASE)
_DOI = re.compile(r"(?:doi:|doi\.org/)(\S+)", re.IGNORECASE)


def addresses(text: str) -> list[str]:
    return [found.rstrip(".,;:") for found in _ADDRESS.findall(text)]


def faults(text: str, hosts: set[str]) -> list[str]:
    """What is wrong with the addresses in a text."""
    found = []
    for address in addresses(text):
        if "{" in address or "%s" in address:  # made up by code, of parts
            continue
        parts = urlsplit(address)
        if parts.hostname in OURSELVES:
            continue
        if parts.scheme != "https":
            found.append(f"{address}: not https")
        if parts.hostname not in hosts:
            found.append(f"{address}: a host that is not on the list")
        if parts.username or parts.port or re.search(r"[^\w./~:?#@!$&*+,;=%()-]|//", address[8:]):
            found.append(f"{address}: malformed")
    for number in _PAPER.findall(text):
        month = re.fullmatch(r"\d\d(\d\d)\.\d{4,5}(?:v\d+)?", number)
        if not (month and 1 <= int(month[1]) <= 12):
            found.append(f"arXiv:{number}: no number that arXiv gives")
    found += [
        f"doi:{name}: no name of a DOI" for name in _DOI.findall(text) if not re.match(r"10\.\d{4,}/\S", name)
    ]
    return found


@pytest.mark.parametrize("file", READ, ids=name_of)
def test_addresses_are_well_formed_encrypted_and_of_known_hosts(file):
    hosts = HOSTS | FETCHED if file in CODE else HOSTS
    assert faults(file.read_text(encoding="utf-8"), hosts) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[a](http://arxiv.org/abs/2110.05679)", "not https"),
        ("[a](https://example.test/a)", "not on the list"),
        ("[a](https://arxiv.org//abs/2110.05679)", "malformed"),
        ("arXiv:2113.05679", "arXiv:2113.05679: no number"),
        ("arXiv:211.0567", "no number"),
        ("doi:24432/C5N30T", "no name of a DOI"),
    ],
)
def test_the_checks_can_fail(text, fault):
    assert any(fault in found for found in faults(text, HOSTS))


def test_one_place_has_one_address():
    """The same page under http and https, with and without a slash, `www.` or `.git` at its end, is one."""
    written = defaultdict(set)
    for file in READ:
        for address in addresses(file.read_text(encoding="utf-8")):
            plain = re.sub(r"^https?://(www\.)?", "", address.partition("#")[0]).removesuffix("/")
            written[plain.removesuffix(".git").lower()].add(address.partition("#")[0])
    assert [sorted(several) for several in written.values() if len(several) > 1] == []


def test_the_site_s_own_links_and_anchors_are_checked_by_its_builder():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    links = config["validation"]["links"]
    assert {links[kind] for kind in ("not_found", "anchors", "absolute_links", "unrecognized_links")} == {
        "warn"
    }
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_paths_are_read_at_all():
    assert sum(len(addresses(Path(file).read_text(encoding="utf-8"))) for file in READ) > 20
