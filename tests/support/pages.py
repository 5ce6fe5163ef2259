"""Runs the code of a Markdown page: Python in one namespace for the page, commands of ours in this process.

What a page may say in HTML comments, which readers of the site do not see:

    <!-- setup        Python that the page's code needs and that would not help its reader
    ...
    -->
    <!-- run as: OLD => NEW; OLD => NEW -->   smaller numbers for the next block; each OLD must be there
    <!-- not run: REASON -->                  for the next block

A block with a title in its info string (```toml title="a.toml") is written to that file. Blocks of `text` and
`json` are output. Of other programs' command lines it is checked that what they name exists: extras of pip,
targets of make, modules, files.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from reticent.cli import main

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ("text", "json", "diff")

_PART = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)\n-->"
    r"|^ *<!-- run as: (?P<changes>[^>]*?(?:=>[^>]*?)+)-->"
    r"|^ *<!-- not run: (?P<reason>.*?) -->"
    r"|^(?P<indent> *)```(?P<language>\w*)(?P<info>[^\n]*)\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """A fence: its language, its text as run, the line it stands in, and why it is not run, if it is not."""

    page: str
    line: int
    language: str
    code: str
    title: str | None = None
    not_run: str | None = None


def blocks(path: Path) -> Iterator[Block]:
    """The blocks of a page, setups among them, in order."""
    text = path.read_text(encoding="utf-8")
    changes, reason = "", None
    for match in _PART.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["setup"] is not None:
            yield Block(path.name, line + 1, "python", match["setup"])
        elif match["changes"] is not None:
            changes = match["changes"]
        elif match["reason"] is not None:
            reason = match["reason"]
        else:
            code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
            title = _TITLE.search(match["info"])
            yield Block(
                path.name,
                line + 1,
                match["language"],
                _changed(code, changes, f"{path.name}:{line}"),
                title=title[1] if title else None,
                not_run=reason,
            )
            changes, reason = "", None
    assert not changes and reason is None, f"{path.name}: a comment without a block after it"


def _changed(code: str, changes: str, where: str) -> str:
    for change in filter(None, (part.strip() for part in changes.split(";"))):
        old, new = (part.strip() for part in change.split("=>"))
        assert old in code, f"{where}: '{old}' is not in the block"
        code = code.replace(old, new)
    return code


def run_page(path: Path) -> None:
    """Run every block in the current folder."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(path):
        where = f"{block.page}:{block.line}"
        if block.title is not None:
            Path(block.title).write_text(block.code, encoding="utf-8")
        if block.not_run is not None or block.language in OUTPUT:
            continue
        match block.language:
            case "python":
                padded = "\n" * (block.line - 1) + block.code  # a traceback shows the page's own line
                exec(compile(padded, str(path), "exec"), names)
            case "sh":
                for command in block.code.replace("\\\n", " ").splitlines():
                    run_command(command, where)
            case "toml":
                tomllib.loads(block.code)
            case _:
                raise AssertionError(f"{where}: blocks say python, sh, toml, text, json or diff")


def run_command(line: str, where: str) -> None:
    """Run a command of ours; check what any other names."""
    words = shlex.split(line, comments=True)
    if words and re.fullmatch(r"OMP_NUM_THREADS=\d+", words[0]):
        words = words[1:]
    if not words:
        return
    match words:
        case ["reticent", *arguments]:
            result = CliRunner().invoke(main, arguments)
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            assert result.exit_code == 0, f"{where}: {line}\n{result.output}"
        case ["pip", "install", *packages]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            for extra in re.findall(r"(?:reticent|\.)\[([\w,-]+)\]", " ".join(packages)):
                assert set(extra.split(",")) <= project["optional-dependencies"].keys(), f"{where}: {extra}"
        case ["make", target, *_]:
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), f"{where}: {target}"
        case ["python", "-m", module, *_] | ["torchrun", _, _, "-m", module, *_]:
            file = (ROOT / "src" if module.startswith("reticent") else ROOT).joinpath(*module.split("."))
            assert file.is_dir() or file.with_suffix(".py").exists(), f"{where}: {module}"
        case ["python" | "pytest", file, *_]:
            assert (ROOT / file.partition("::")[0]).exists(), f"{where}: {file}"
        case _:
            raise AssertionError(f"{where}: cannot run '{line}'; say why in <!-- not run: ... -->")
