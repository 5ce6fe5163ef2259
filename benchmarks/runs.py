"""Runs that a benchmark's table is made of: each in a folder of its own, never taken for another."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reticent.recipes import request, run_or_go_on


def trained(recipe: str, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The result of `reticent train RECIPE --set ... --out folder --resume`: found, gone on with, or run now.

    Raises:
        ConfigError[other-run]: the folder holds a run of another recipe, or with other settings.
        subprocess.CalledProcessError: the run failed; what it says is on the screen.
        SystemExit: the data could not be reached, and another recipe ran instead.
    """
    assignments = [f"{name}={value}" for name, value in settings.items()]
    if (folder / "result.json").exists():
        result = run_or_go_on(request(recipe, assignments), out=folder)
    else:
        sets = [part for text in assignments for part in ("--set", text)]
        command = [sys.executable, "-m", "reticent", "train", recipe, *sets, "--out", str(folder), "--resume"]
        subprocess.run([*command, "--json"], check=True, stdout=sys.stderr)
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if result["recipe"] != recipe:
        raise SystemExit(
            f"'{folder}' is of '{result['recipe']}': the data of '{recipe}' could not be reached."
        )
    return result
