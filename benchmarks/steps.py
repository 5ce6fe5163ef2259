"""Whole private steps beside non-private ones: clipped sum, noise, ledger and AdamW, eager and compiled.

    python -m benchmarks.steps --case bert-base --chunks 4 --json steps.json

In one process, with models of the same weights, by turns in alternating order after some rounds that are not
counted (`--warm`); ratios are taken within a round, and medians reported. A step is of `--chunks` of the
case's batches: the non-private one accumulates their gradients. Noise costs the same for any batch, so its
share, and the ratio, fall with the size of the logical batch; `noise_share` is the part of the eager private
step that drawing it takes.
Times of the sums alone, memory and other engines are `benchmarks.clipping`'s.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.cases import CASES
from benchmarks.measure import command, commit, processor, versions
from benchmarks.private import TimedNoise, private_step
from benchmarks.work import Work

BASE: Final = "non-private"
WAYS: Final = (BASE, "non-private-compiled", "private", "private-compiled")


def _work(case: str, device: str) -> Work:
    torch.manual_seed(0)
    return CASES[case].build().on(device)


def _adamw(work: Work) -> torch.optim.Optimizer:
    return torch.optim.AdamW(work.trainable().values(), lr=1e-5)


def plain_step(work: Work, chunks: int, *, compile: bool) -> Callable[[], None]:
    """A step without privacy: gradients of the mean loss, accumulated over the chunks, and AdamW's step."""
    losses = torch.compile(work.losses, dynamic=False) if compile else work.losses
    optimizer = _adamw(work)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(chunks):
            (losses(work.batch).mean() / chunks).backward()
        optimizer.step()

    return step


def measure(
    case: str,
    rounds: int,
    *,
    chunks: int = 1,
    warm: int = 2,
    device: str = "cpu",
    ways: tuple[str, ...] = WAYS,
) -> dict[str, Any]:
    """Medians over rounds: seconds by way, and the ratios that matter."""
    with tempfile.TemporaryDirectory() as folder:
        steps: dict[str, Callable[[], None]] = {}
        noises: dict[str, TimedNoise] = {}
        for way in ways:
            work, compiled = _work(case, device), way.endswith("compiled")
            if way.startswith(BASE):
                steps[way] = plain_step(work, chunks, compile=compiled)
                continue
            made = private_step(
                work,
                _adamw(work),
                num_steps=rounds + warm,
                folder=Path(folder) / way,
                copies=chunks,
                compile=compiled,
            )
            steps[way], noises[way] = made.step, made.noise
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + warm):
            if turn == warm:
                noises["private"].seconds = 0.0
            for way in ways if turn % 2 else reversed(ways):
                seconds[way].append(_timed(steps[way], device))
    seconds = {way: found[warm:] for way, found in seconds.items()}
    pairs = [(one, base) for one in ways for base in ways if base.startswith(BASE) and one != base]
    ratios = {f"{one} / {base}": _ratio(seconds[one], seconds[base]) for one, base in pairs}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command(),
        "case": case,
        "chunks": chunks,
        "rounds": rounds,
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "processor": processor(),
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "seconds": {way: statistics.median(found) for way, found in seconds.items()},
        "ratios": ratios,
        "noise_share": noises["private"].seconds / sum(seconds["private"]),
    }


def _ratio(times: list[float], base: list[float]) -> dict[str, float]:
    found = [t / b for t, b in zip(times, base, strict=True)]
    return {"median": statistics.median(found), "least": min(found), "largest": max(found)}


def _timed(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", choices=list(CASES), default="gpt2-4", metavar="NAME")
    parser.add_argument("--chunks", type=int, default=1, help="of the case's batch in a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2, help="rounds before, that are not counted")
    parser.add_argument("--eager", action="store_true", help="leave the compiled ones out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    given = parser.parse_args()
    if missing := CASES[given.case].missing():
        parser.error(f"case {given.case} needs {', '.join(missing)}: pip install -e '.[bench]'")
    if min(given.rounds, given.chunks) < 1 or given.warm < 0:
        parser.error("--rounds and --chunks must be at least 1, --warm at least 0")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    found = measure(
        given.case,
        given.rounds,
        chunks=given.chunks,
        warm=given.warm,
        device=given.device,
        ways=(BASE, "private") if given.eager else WAYS,
    )
    print(json.dumps(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
