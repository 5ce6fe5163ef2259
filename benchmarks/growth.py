"""How time and memory grow with one size of a small decoder: the exponent of each engine.

    python -m benchmarks.growth --axis length --engines reticent-flat,reticent-low-memory --out growth.json

Everything else stays as it is while the axis takes four or five sizes. The exponent is the slope of a
straight line through the logarithms (least squares): 1 is linear growth. At small sizes the constant
costs of a step flatten it, so compare an engine's exponent with that of non-private training.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import AXES, grown
from benchmarks.clipping import names
from benchmarks.engines import ENGINES
from benchmarks.measure import Settings, compare

DEFAULT = "non-private,reticent-flat,reticent-low-memory,reticent-per-layer"
FIGURES = ("seconds", "memory_mib")
HEAD = ("date", "commit", "command", "processor", "rounds", "threads", "torch", "versions")


def exponent(sizes: Sequence[int], values: Sequence[float | None]) -> float | None:
    """Slope of log value over log size by least squares; None with fewer than three values."""
    points = [(math.log(s), math.log(v)) for s, v in zip(sizes, values, strict=True) if v and v > 0]
    if len(points) < 3:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def measure(axis: str, sizes: Sequence[int], settings: Settings) -> dict[str, Any]:
    """Engine -> seconds and MiB at every size (None where it was skipped), and their exponents."""
    found: dict[str, Any] = {
        e: {"seconds": [], "memory_mib": [], "skipped": {}} for e in ENGINES if e in settings.engines
    }
    head: dict[str, Any] = {}
    for size in sizes:
        results = compare(
            Settings(
                case=f"grown:{axis}={size}",
                rounds=settings.rounds,
                engines=settings.engines,
                memory_limit=settings.memory_limit,
                time_limit=settings.time_limit,
            ),
            lambda line, size=size: print(f"{axis} {size}: {line}", file=sys.stderr, flush=True),
        )
        head = {k: results[k] for k in HEAD}
        for engine, figures in found.items():
            for field in FIGURES:
                figures[field].append(results[engine].get(field))
            if "skipped" in results[engine]:
                figures["skipped"][str(size)] = results[engine]["skipped"]
    for figures in found.values():
        figures["time_exponent"] = exponent(sizes, figures["seconds"])
        figures["memory_exponent"] = exponent(sizes, figures["memory_mib"])
    return {"axis": axis, "sizes": list(sizes), **head, "engines": found}


def table(results: dict[str, Any]) -> None:
    """Print seconds and MiB at every size, and the exponents."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"growth with {results['axis']}: seconds / MiB")
    shown.add_column("engine", no_wrap=True)
    for size in results["sizes"]:
        shown.add_column(str(size), justify="right", no_wrap=True)
    shown.add_column("time ~", justify="right", no_wrap=True)
    shown.add_column("memory ~", justify="right", no_wrap=True)
    for engine, figures in results["engines"].items():
        cells = [
            "-" if s is None else f"{s:.3g} / {'-' if m is None else f'{m:.0f}'}"
            for s, m in zip(figures["seconds"], figures["memory_mib"], strict=True)
        ]
        ends = [_power(figures["time_exponent"], "n"), _power(figures["memory_exponent"], "n")]
        shown.add_row(engine, *cells, *ends)
    console = Console(width=150)
    console.print(shown)
    for engine, figures in results["engines"].items():
        for size, reason in figures["skipped"].items():
            console.print(f"{engine} at {size}: {reason}", highlight=False, markup=False)


def _power(value: float | None, base: str) -> str:
    return "-" if value is None else f"{base}^{value:.2f}"


def draw(results: dict[str, Any], path: Path) -> None:
    """Both figures over size, on logarithmic axes, the exponents in the legend."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    units = (
        ("seconds", "time_exponent", "seconds a step"),
        ("memory_mib", "memory_exponent", "MiB above loaded"),
    )
    for panel, (field, power, label) in zip(panels, units, strict=True):
        for engine, figures in results["engines"].items():
            points = [(s, v) for s, v in zip(results["sizes"], figures[field], strict=True) if v and v > 0]
            if points:
                legend = f"{engine}  {_power(figures[power], 'n')}"
                panel.plot(*zip(*points, strict=True), marker="o", label=legend)
        panel.set(xscale="log", yscale="log", xlabel=results["axis"], ylabel=label)
        panel.set_xticks(results["sizes"], [str(s) for s in results["sizes"]])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, loc="upper left")
    figure.suptitle(f"Growth with {results['axis']}")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--axis", choices=list(AXES), required=True)
    parser.add_argument("--sizes", type=int, nargs="+", help="in place of the axis's own")
    parser.add_argument("--engines", type=names, default=names(DEFAULT), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--out", type=Path, help="write the JSON object to this file too")
    parser.add_argument("--plot", type=Path, help="PNG (default: OUT with .png, if --out is given)")
    parser.add_argument("--memory-limit", type=float, default=20.0, help="GiB for each process")
    parser.add_argument("--time-limit", type=float, default=900.0, help="seconds for an answer")
    args = parser.parse_args(argv)
    sizes = tuple(args.sizes or AXES[args.axis])
    if min(sizes) < 1 or args.rounds < 1:
        parser.error("sizes and rounds must be at least 1")
    if missing := grown(args.axis, sizes[0]).missing():
        parser.error(f"needs {', '.join(missing)}: pip install -e '.[bench]'")
    settings = Settings(
        case="",
        rounds=args.rounds,
        engines=args.engines,
        memory_limit=args.memory_limit,
        time_limit=args.time_limit,
    )
    try:
        results = measure(args.axis, sizes, settings)
    except RuntimeError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    if picture := args.plot or (args.out and args.out.with_suffix(".png")):
        draw(results, picture)
    if args.json:
        print(json.dumps(results))
    else:
        table(results)


if __name__ == "__main__":
    main()
