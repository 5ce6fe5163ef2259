"""Hooks of the site's builder: error codes in the reference lead to their headings; the search has a name.

mkdocstrings reads `ConfigError[clip-norm]` as an expression and shows `ConfigError[clip - norm]`. The theme's
search dialog has no name for screen readers.
"""

import re
from pathlib import Path
from typing import Any

_BRACKETS = re.compile(r"\[((?:<[^>]+>|[\w\s,.-])+)\]")
_SEARCH = 'data-md-component="search" role="dialog"'


def codes_in(errors_page: str) -> frozenset[str]:
    """The codes that have a heading."""
    return frozenset(re.findall(r"^## ([\w-]+)$", errors_page, flags=re.MULTILINE))


def with_codes(html: str, *, codes: frozenset[str], errors_url: str) -> str:
    """The same HTML, with error codes spelled right and linked; whatever else is in brackets stays."""

    def replaced(match: re.Match[str]) -> str:
        plain = re.sub(r"<[^>]+>", "", match[1])
        found = [re.sub(r"\s*-\s*", "-", part.strip()) for part in plain.split(",")]
        if not set(found) <= codes:
            return match[0]
        links = (f'<a href="{errors_url}#{code}">{code}</a>' for code in found)
        return f"[{', '.join(links)}]"

    return _BRACKETS.sub(replaced, html)


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Called by MkDocs with each page's HTML."""
    if not page.file.src_uri.startswith("api/"):
        return html
    codes = codes_in((Path(config["docs_dir"]) / "errors.md").read_text(encoding="utf-8"))
    errors_url = files.get_file_from_path("errors.md").url_relative_to(page.file)
    return with_codes(html, codes=codes, errors_url=errors_url)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Called by MkDocs with each whole page."""
    return output.replace(_SEARCH, f'{_SEARCH} aria-label="Search"')
