"""One engine at one case, in a process of its own: memory, then correctness, then times on request.

Started by `benchmarks.measure`; requests come on standard input and replies go to standard output, a JSON
object a line. What libraries print goes to standard error.
"""

import ctypes
import gc
import importlib.util
import json
import math
import os
import re
import resource
import signal
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.cases import find
from benchmarks.engines import ENGINES, Engine, Step
from benchmarks.reference import TOLERANCE, Reference, reference
from benchmarks.work import Skip, Work

MEMORY_STEPS = 3
LEAST_SECONDS = 0.3  # of timing for an answer: short steps are taken again, since the first finds caches cold
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def _kib(field: str) -> int:
    """A figure of this process from the kernel, in KiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def _limit_memory(gib: float) -> None:
    """Let allocations beyond a limit fail here; if the machine runs out, let this process end first."""
    size = int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass


def _end_with_parent() -> None:
    """Ask the kernel to end this process with the one that started it, even while it stands still (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def peak_above_loaded(step: Step, device: str) -> float | None:
    """MiB that the first steps need above the loaded model and batch; None where the kernel does not tell.

    On the CPU of resident memory; on a GPU of what torch allocates there.
    """
    gc.collect()
    if device == "cuda":
        return _peak_on_gpu(step)
    try:
        loaded = _kib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far, which loading reached
    except OSError:
        loaded = None
    kept: list[Any] = []
    for _ in range(MEMORY_STEPS):
        kept.clear()
        kept.append(step())
    return None if loaded is None else (_kib("VmHWM") - loaded) / 1024


def _peak_on_gpu(step: Step) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    loaded = torch.cuda.memory_allocated()
    kept: list[Any] = []
    for _ in range(MEMORY_STEPS):
        kept.clear()
        kept.append(step())
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - loaded) / 2**20


def one_line(error: BaseException) -> str:
    """The first line that says something, with the kind of the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r" \(/\S+\)", "", lines[0]) if lines else ""  # without the path of a module
    return f"{type(error).__name__}: {text}"[:300]


def build(case: str, seed: int, device: str = "cpu") -> Work:
    """The case's work on a device; the same weights and batch for the same seed."""
    torch.manual_seed(seed)
    return find(case).build().on(device)


def _asked(request: dict[str, Any]) -> Work:
    return build(request["case"], request["seed"], request["device"])


def _install_hint(engine: Engine) -> None:
    missing = [name for name in engine.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise Skip(f"not installed: pip install {' '.join(m.replace('_', '-') for m in missing)}")


def _prepare(request: dict[str, Any]) -> tuple[Step, dict[str, Any]]:
    engine = ENGINES[request["engine"]]
    _install_hint(engine)
    if engine.cpu_only and request["device"] != "cpu":
        raise Skip("on CPUs only")
    work = _asked(request)
    saved = Path(request["reference"])
    step = engine.make(work, Reference.load(saved).max_norm)
    ready: dict[str, Any] = {"memory_mib": peak_above_loaded(step, request["device"]), "max_error": None}
    if engine.private:
        sums = dict(step())
        ready["max_error"] = Reference.load(saved).max_error(sums, engine.kind)
        if ready["max_error"] > TOLERANCE:
            ready["skipped"] = f"wrong by {ready['max_error']:.2g} C"
            if not math.isfinite(ready["max_error"]):  # JSON has no word for it
                ready["max_error"] = None
    return step, ready


def _serve(request: dict[str, Any], replies: TextIO) -> None:
    step, ready = _prepare(request)
    print(json.dumps(ready), file=replies, flush=True)
    if "skipped" in ready:
        return
    kept: list[Any] = []
    for _ in sys.stdin:
        print(json.dumps(timed(step, kept, request["device"])), file=replies, flush=True)


def timed(step: Step, kept: list[Any], device: str) -> dict[str, float]:
    """Medians of as many steps as take `LEAST_SECONDS`, the first left out if there are more.

    `kept` holds the last sum.

    Page faults: 4 KiB each, memory that the system had to map anew, and to fill with zeros.
    """
    times: list[float] = []
    faults: list[int] = []
    total = 0.0
    while total < LEAST_SECONDS:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        kept.clear()  # as `.grad` does, the last sum lives until the next step begins
        kept.append(step())
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        total += times[-1]
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {
        "seconds": statistics.median(times[1:] or times),
        "page_faults": statistics.median(faults[1:] or faults),
    }


def _make_reference(request: dict[str, Any], replies: TextIO) -> None:
    found = reference(_asked(request), request["kinds"])
    found.save(Path(request["reference"]))
    reply = {"max_norm": found.max_norm, "num_clipped": found.num_clipped}
    print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    """Answer until standard input ends."""
    _end_with_parent()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    request = json.loads(sys.stdin.readline())
    try:
        if request["device"] == "cpu":  # CUDA reserves far more addresses than it uses
            _limit_memory(request["memory_limit"])
        torch.set_num_threads(request["threads"])
        if "engine" in request:
            _serve(request, replies)
        else:
            _make_reference(request, replies)
    except Skip as why:
        print(json.dumps({"skipped": str(why)}), file=replies, flush=True)
    except Exception as error:
        print(json.dumps({"skipped": one_line(error)}), file=replies, flush=True)
        raise


if __name__ == "__main__":
    main()
