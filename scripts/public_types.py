"""Every type of the public interface is known: what `pyright --verifytypes reticent` says, as a check.

python scripts/public_types.py    prints the share of symbols whose type is known; exits 1 below 99 %

Public is what has no leading underscore, in every room, with all members and parameters: the front door's
names are a part of it. A symbol falls short if a strict type checker would have to guess.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENOUGH = 0.99
_MESSAGES = 10


def report() -> dict:
    """Pyright's own report. It looks for `reticent` where the `python` on PATH would."""
    bin_dir = Path(sys.executable).parent
    done = subprocess.run(
        [bin_dir / "pyright", "--verifytypes", "reticent", "--ignoreexternal", "--outputjson"],
        env={**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)["typeCompleteness"]


def main() -> int:
    """Print the score, and what is missing if it is too low."""
    found = report()
    score = found["completenessScore"]
    counts = found["exportedSymbolCounts"]
    total = sum(counts.values())
    print(f"{counts['withKnownType']} of {total} public symbols have a known type: {100 * score:.1f} %")
    if score >= ENOUGH:
        return 0
    missing = [s for s in found["symbols"] if s["isExported"] and not s["isTypeKnown"]]
    for symbol in missing[:_MESSAGES]:
        print(symbol["name"], *(d["message"] for d in symbol["diagnostics"]), sep="\n    ", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
