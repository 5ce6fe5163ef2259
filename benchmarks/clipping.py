"""Time and memory of a clipped gradient sum against non-private training of the same model.

    python -m benchmarks.clipping --case gpt2-4 --rounds 5 --json

Times: all engines in one process, in turn, round after round, after one round that is not counted;
the ratio is taken within each round, and the median reported. Memory: one process for each engine;
(peak resident memory - that with model and batch loaded) over the same of non-private training; Linux only.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, Work

ENGINES = ("non-private", "reticent-flat")


def step_of(engine: str, work: Work) -> Callable[[], dict[str, torch.Tensor]]:
    """A function that computes one summed gradient, clipped or not."""
    params = {n: p for n, p in work.model.named_parameters() if p.requires_grad}
    if engine == "non-private":

        def plain() -> dict[str, torch.Tensor]:
            for p in params.values():
                p.grad = None
            work.losses(work.batch).sum().backward()
            return {n: p.grad for n, p in params.items() if p.grad is not None}

        return plain
    from reticent.clip import ClipEngine

    clip = ClipEngine(work.model, max_norm=1.0)

    def clipped() -> dict[str, torch.Tensor]:
        return dict(clip.clipped_sum(work.losses, work.batch).total)

    return clipped


def max_error(work: Work) -> float:
    """Largest distance of the clipped sum from one example at a time, over the bound."""
    from reticent.clip import ClipEngine

    got = ClipEngine(work.model, max_norm=1.0).clipped_sum(work.losses, work.batch).total
    want = ClipEngine(work.model, max_norm=1.0, method="loop").clipped_sum(work.losses, work.batch).total
    return max(float((got[n] - want[n]).norm()) for n in want)


def peak_above_loaded(case: str, engine: str) -> float:
    """MiB of resident memory that three steps need above the loaded model and batch (own process)."""
    command = [sys.executable, "-m", "benchmarks.clipping", "--case", case, "--memory-of", engine]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _kib(field: str) -> int:
    """A figure of this process from the kernel, in KiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def _memory_of(case: str, engine: str) -> float:
    torch.manual_seed(0)
    work = CASES[case]()
    step = step_of(engine, work)
    loaded = _kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far, which loading reached
    for _ in range(3):
        step()
    return (_kib("VmHWM") - loaded) / 1024


def compare(case: str, rounds: int) -> dict[str, Any]:
    """All figures of one case."""
    torch.manual_seed(0)
    work = CASES[case]()
    error = max_error(work)
    steps = {engine: step_of(engine, work) for engine in ENGINES}
    times: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for r in range(rounds + 1):
        for engine, step in steps.items():
            start = time.perf_counter()
            step()
            if r:
                times[engine].append(time.perf_counter() - start)
    memory = {engine: peak_above_loaded(case, engine) for engine in ENGINES}
    base = memory["non-private"]
    results: dict[str, Any] = {
        "case": case,
        "rounds": rounds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
    }
    for engine in ENGINES:
        ratios = [t / base for t, base in zip(times[engine], times["non-private"], strict=True)]
        results[engine] = {
            "seconds": statistics.median(times[engine]),
            "time_ratio": statistics.median(ratios),
            "time_ratio_range": [min(ratios), max(ratios)],
            "memory_mib": memory[engine],
            "memory_ratio": memory[engine] / base if base >= 1 else None,  # below 1 MiB it is noise
            "max_error": None if engine == "non-private" else error,
        }
    return results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clipping", description=__doc__)
    parser.add_argument("--case", choices=sorted(CASES), default="gpt2-4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--memory-of", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list:
        print("\n".join(sorted(CASES)))
    elif args.memory_of:
        print(_memory_of(args.case, args.memory_of))
    else:
        results = compare(args.case, args.rounds)
        if args.json:
            print(json.dumps(results))
            return
        for engine in ENGINES:
            r = results[engine]
            memory = "-" if r["memory_ratio"] is None else f"x{r['memory_ratio']:.2f}"
            print(f"{engine:15} {r['seconds']:8.3f} s  x{r['time_ratio']:.2f}  memory {memory}")


if __name__ == "__main__":
    main()
