"""Build the wheel and the sdist, check what is in them, and install the wheel as a newcomer would.

python scripts/package_check.py            build and look inside: seconds
python scripts/package_check.py --install  also install it, and resolve every extra: minutes, network
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IN_WHEEL = (
    "reticent/py.typed",
    "reticent/report/templates/report.html.j2",
    "reticent/report/templates/style.css",
    "reticent/report/templates/card.md.j2",
)
IN_SDIST = (
    "src/reticent/__init__.py",
    "tests/conftest.py",
    "docs/guarantees.md",
    "LICENSE",
    "constraints.txt",
)
FIRST_COMMAND = (
    "plan --epsilon 3 --delta 1e-5 --num-examples 60000 --expected-batch-size 4096 --num-steps 600 --json"
)


def build(out: Path) -> tuple[Path, Path]:
    """The wheel and the sdist, the wheel made from the sdist."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, ROOT], check=True, capture_output=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def missing(wheel: Path, sdist: Path) -> list[str]:
    """What should be in them and is not, and what is and should not be."""
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    found = [f"wheel lacks {name}" for name in IN_WHEEL if name not in in_wheel]
    found += [f"sdist lacks {name}" for name in IN_SDIST if name not in in_sdist]
    tops = {name.partition("/")[0] for name in in_wheel}
    found += [f"wheel holds {top}" for top in tops if top != "reticent" and not top.endswith(".dist-info")]
    return found


def install(wheel: Path, folder: Path) -> None:
    """Into a fresh environment; the command runs outside of the source tree; every extra resolves."""
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    pip = [folder / "env/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pins = ["-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, *pins, wheel], check=True)
    subprocess.run([folder / "env/bin/reticent", *FIRST_COMMAND.split()], check=True, cwd=folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in project["optional-dependencies"]:
        # The image libraries come with a torch of their own, so pins of torch are not theirs.
        pinned = [] if extra in ("vision", "bench") else pins
        done = subprocess.run(
            [*pip, "--dry-run", *pinned, f"{wheel}[{extra}]"], capture_output=True, text=True
        )
        print(f"extra {extra}: {'resolves' if done.returncode == 0 else done.stderr.strip()}", flush=True)
        done.check_returncode()


def main() -> int:
    """Exit status 1 if a file is missing; an exception if something does not install."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--install", action="store_true", help="install into a fresh environment too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel, sdist = build(Path(folder) / "dist")
        problems = missing(wheel, sdist)
        print(*(problems or [f"{wheel.name} and {sdist.name} hold what they should"]), sep="\n")
        if not problems and asked.install:
            install(wheel, Path(folder))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
