"""Where the time of a clipped sum goes: processor time by operation, beside non-private training's.

    python -m benchmarks.profile --case bert-base --engine reticent-flat --steps 3 --json profile.json

torch.profiler over a few steps of each, by turns, after one that is not counted. Each operation's own time
(that of what it calls left out) is given as a share of the non-private step, so the rows of the last column
add up to what clipping costs. Profiling slows small operations down: compare shares, and take ratios from
`benchmarks.clipping`.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import CASES
from benchmarks.engines import BASE, ENGINES, Step
from benchmarks.measure import versions


def own_seconds(step: Step) -> Counter[str]:
    """Operation -> its own processor seconds in one step."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    found: Counter[str] = Counter()
    for event in profiled.key_averages():
        found[event.key] += event.self_cpu_time_total / 1e6
    return found


def measure(case: str, engine: str, *, steps: int, seed: int = 0) -> dict[str, Any]:
    """Operation -> share of the non-private step: without privacy, with it, and the difference."""
    torch.manual_seed(seed)
    work = CASES[case].build()
    running = {name: ENGINES[name].make(work, 1.0) for name in (BASE, engine)}
    totals: dict[str, Counter[str]] = {name: Counter() for name in running}
    for round_ in range(steps + 1):
        for name, step in running.items():
            seconds = own_seconds(step)
            if round_:
                totals[name].update(seconds)
    whole = totals[BASE].total()
    base, private = ({k: v / whole for k, v in totals[name].items()} for name in (BASE, engine))
    rows = [
        {"operation": k, BASE: base.get(k, 0.0), engine: private.get(k, 0.0)} for k in {**base, **private}
    ]
    rows.sort(key=lambda row: -abs(row[engine] - row[BASE]))
    shown = [row for row in rows if max(row[engine], row[BASE]) >= 0.001]
    others = {name: totals[name].total() / whole - sum(row[name] for row in shown) for name in (BASE, engine)}
    return {
        "case": case,
        "engine": engine,
        "steps": steps,
        "ratio": sum(private.values()),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "rows": [*shown, {"operation": "(all others, each below 0.001)", **others}],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", choices=list(CASES), default="bert-base", metavar="NAME")
    parser.add_argument("--engine", choices=[n for n in ENGINES if n != BASE], default="reticent-flat")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    asked = parser.parse_args()
    found = measure(asked.case, asked.engine, steps=asked.steps)
    print(f"{asked.case}: {asked.engine} takes {found['ratio']:.2f} of non-private training, profiled")
    for row in found["rows"][:12]:
        plain, private = row[BASE], row[asked.engine]
        print(f"{row['operation']:50.50} {plain:7.3f} {private:7.3f} {private - plain:+7.3f}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
