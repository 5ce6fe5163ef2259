"""Time and memory of a clipped gradient sum against non-private training of the same model.

    python -m benchmarks.clipping --case gpt2-4 --rounds 5 --json

Each engine has a process of its own, with the same weights and batch. Memory: (peak resident memory -
that with model and batch loaded) over the same of non-private training, the first step included;
Linux only. Correctness: the clipped sum against one example at a time through plain autograd. Times:
engines take steps in turn (short ones until 0.3 s are full: the median but for the first), in alternating
order, after one round that is not counted; the ratio to non-private training is taken within each round,
and the median reported. Peers are timed one by one.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES
from benchmarks.engines import BASE, ENGINES, QUICK
from benchmarks.measure import Settings, compare


def names(text: str) -> tuple[str, ...]:
    """A comma-separated list of engines; the base is always among them."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    for name in found:
        if name not in ENGINES:
            raise argparse.ArgumentTypeError(f"unknown engine {name!r} (known: {', '.join(ENGINES)})")
    return (BASE, *(n for n in ENGINES if n in found and n != BASE))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clipping",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", choices=list(CASES), default="gpt2-4", metavar="NAME", help="see --list")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--quick", action="store_true", help="non-private and reticent-flat only")
    parser.add_argument("--engines", type=names, help="comma-separated: " + ", ".join(ENGINES))
    parser.add_argument("--out", type=Path, help="write the JSON object to this file too")
    parser.add_argument("--memory-limit", type=float, default=20.0, help="GiB for each process (default 20)")
    parser.add_argument("--time-limit", type=float, default=900.0, help="seconds for an answer (default 900)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: memory is what torch allocates",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and batch")
    return parser


def table(results: dict[str, Any]) -> None:
    """Print the figures of one case."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"{results['case']}: {results['about']}")
    for column in ("engine", "seconds", "time", "range", "memory", "MiB", "error (C)"):
        shown.add_column(column, justify="left" if column == "engine" else "right", no_wrap=True)
    shown.add_column("skipped", overflow="fold")
    for engine in ENGINES:
        r = results[engine]
        if "skipped" in r:
            shown.add_row(engine, *[""] * 6, r["skipped"])
            continue
        low, high = r["time_ratio_range"]
        shown.add_row(
            engine,
            f"{r['seconds']:.4g}",
            f"x{r['time_ratio']:.2f}",
            f"{low:.2f}-{high:.2f}",
            "-" if r["memory_ratio"] is None else f"x{r['memory_ratio']:.2f}",
            "-" if r["memory_mib"] is None else f"{r['memory_mib']:.0f}",
            "-" if r["max_error"] is None else f"{r['max_error']:.1e}",
            "",
        )
    Console(width=150).print(shown)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        for name, case in CASES.items():
            print(f"{name:14} {case.about}")
        return
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    if missing := CASES[args.case].missing():
        parser.error(f"case {args.case} needs {', '.join(missing)}: pip install -e '.[bench]'")
    settings = Settings(
        case=args.case,
        rounds=args.rounds,
        memory_limit=args.memory_limit,
        time_limit=args.time_limit,
        seed=args.seed,
        device=args.device,
        engines=QUICK if args.quick else args.engines or tuple(ENGINES),
        why_not="quick" if args.quick else "not picked",
    )
    try:
        results = compare(settings, lambda line: print(line, file=sys.stderr, flush=True))
    except RuntimeError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    if args.json:
        print(json.dumps(results))
    else:
        table(results)


if __name__ == "__main__":
    main()
