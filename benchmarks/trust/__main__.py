"""python -m benchmarks.trust [--plans N] [--fuzz SECONDS] [--mutants] [--out FILE]

Prints the table of figures, and keeps every result in FILE, from which an interrupted command goes on.
"""

import argparse
import json
import logging
import platform
from importlib.metadata import version
from pathlib import Path

from benchmarks.trust import cost, faults, fuzz, mutants, plans


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--plans", type=int, default=500, help="random plans to calibrate and cross-check")
    parser.add_argument("--fuzz", type=float, default=60.0, help="CPU seconds of fuzzing")
    parser.add_argument("--mutants", action="store_true", help="plant bugs, too (minutes)")
    parser.add_argument("--out", type=Path, default=Path("trust.json"))
    asked = parser.parse_args()
    logging.disable(logging.WARNING)  # each torn ledger says what it dropped
    kept = json.loads(asked.out.read_text()) if asked.out.exists() else {}

    def keep():
        kept["environment"] = {
            "python": platform.python_version(),
            **{name: version(name) for name in ("reticent", "dp-accounting", "numpy", "scipy", "torch")},
        }
        asked.out.write_text(json.dumps(kept, indent=1))

    for name, make in (
        ("ledgers", faults.ledgers),
        ("settings", faults.settings),
        ("neighbours", faults.neighbours),
        ("ledger cost", cost.ledger),
        ("noise cost", cost.noise),
        ("calibration", cost.calibration),
    ):
        if name not in kept:
            kept[name] = make()
            keep()
    if asked.fuzz and kept.get("fuzz", {}).get("CPU seconds", 0) < asked.fuzz:
        kept["fuzz"] = {"CPU seconds": asked.fuzz, **fuzz.fuzz(asked.fuzz)}
        keep()
    for seed in range(len(kept.setdefault("plans", [])), asked.plans):
        kept["plans"].append(plans.one(seed))
        if seed % 10 == 9:
            keep()
    for mutant in mutants.MUTANTS if asked.mutants else ():
        if mutant[0] not in [found["bug"] for found in kept.setdefault("mutants", [])]:
            kept["mutants"].append(mutants.run(mutant))
            keep()
    keep()
    figures = {**kept["ledgers"], **kept["settings"], **kept["neighbours"], **kept.get("fuzz", {})}
    figures |= {
        **kept["ledger cost"],
        **kept["noise cost"],
        **kept["calibration"],
        **plans.table(kept["plans"]),
    }
    for name, value in figures.items():
        print(f"| {name} | {json.dumps(value)} |")
    for found in kept.get("mutants", ()):
        print(f"| {found['bug']} | caught: {found['caught']} | {found['by']} |")


if __name__ == "__main__":
    main()
