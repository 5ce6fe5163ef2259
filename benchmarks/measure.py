"""Compares engines on one case: a process for each, steps in turn, ratios within each round.

A process that fails, is wrong, takes too much memory or does not answer is reported with the reason,
and the others go on.
"""

import json
import os
import platform
import selectors
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.cases import find
from benchmarks.engines import BASE, ENGINES, threads

PACKAGES = ("torch", "transformers", "peft", "opacus", "opake", "jax", "jax-privacy")
AT_ONCE = 4  # processes of our own that hold a model beside non-private training's


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is run.

    Args:
        case: its name.
        rounds: how often each engine is timed, after one round that is not counted.
        engines: names of those that are run; the rest is reported as skipped.
        why_not: the reason given for the rest.
        memory_limit: GiB of address space a process may have.
        time_limit: seconds a process may take for an answer.
        seed: of weights and batch.
        device: "cpu" or "cuda".
    """

    case: str
    rounds: int
    engines: tuple[str, ...] = tuple(ENGINES)
    why_not: str = "not picked"
    memory_limit: float = 20.0
    time_limit: float = 900.0
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Worker:
    """A process of `benchmarks.worker`, which stands still between answers: its idle threads take no time."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    time_limit: float

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its answer; `{"skipped": reason}` if there is none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            _signal(self.process, signal.SIGCONT)
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            line = _line(self.process.stdout, self.time_limit)
            _signal(self.process, signal.SIGSTOP)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            return {"skipped": f"no answer in {self.time_limit:.0f} s"}
        return json.loads(line) if line else {"skipped": self._epitaph()}

    def _epitaph(self) -> str:
        _signal(self.process, signal.SIGCONT)
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "killed, most likely for its memory"
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()
        return f"ended with {code}: {said[-1] if said else 'no message'}"[:300]


def _line(stream: IO[bytes], time_limit: float) -> bytes:
    found = b""
    deadline = time.monotonic() + time_limit
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not found.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            more = os.read(stream.fileno(), 65536)
            if not more:
                return b""
            found += more
    return found


@contextmanager
def worker(time_limit: float) -> Iterator[Worker]:
    """A process that ends with the block, with whatever it started."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            yield Worker(process=process, errors=errors, time_limit=time_limit)
        finally:
            _signal(process, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    _close(stream)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the process and what it started, if any of it is still there."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        pass


def groups(engines: Sequence[str]) -> list[list[str]]:
    """Who is timed together: a few of our own engines, every peer alone (they are large)."""
    own = [e for e in engines if not ENGINES[e].peer and e != BASE]
    together = [own[at : at + AT_ONCE] for at in range(0, len(own), AT_ONCE)] or [[]]
    return [*together, *([e] for e in engines if ENGINES[e].peer)]


def compare(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures of one case: engine -> figures, or `{"skipped": reason}`.

    Raises:
        RuntimeError: non-private training or the reference fails: there is nothing to compare with.
    """
    results: dict[str, Any] = {e: {"skipped": settings.why_not} for e in ENGINES}
    head: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": command(),
        "processor": processor(),
        "case": settings.case,
        "about": find(settings.case).about,
        "rounds": settings.rounds,
        "seed": settings.seed,
        "threads": threads(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory() as folder:
        request = {
            "case": settings.case,
            "seed": settings.seed,
            "threads": threads(),
            "device": settings.device,
            "memory_limit": settings.memory_limit,
            "reference": str(Path(folder) / "reference.pt"),
            "kinds": sorted({ENGINES[e].kind for e in settings.engines}),
        }
        say("reference: one example at a time")
        with worker(settings.time_limit) as maker:
            head.update(_required(maker.ask(request), "The reference"))
        with worker(settings.time_limit) as base:
            ready = _required(base.ask({**request, "engine": BASE}), "Non-private training")
            times: list[dict[str, float]] = []
            for names in groups(settings.engines):
                results.update(_one_group(names, request, base, ready, times, settings, say))
    results[BASE] = {
        "seconds": _median(times, "seconds") if times else None,
        "time_ratio": 1.0,
        "time_ratio_range": [1.0, 1.0],
        "memory_mib": ready["memory_mib"],
        "memory_ratio": 1.0,
        "max_error": None,
        "page_faults": _median(times, "page_faults") if times else None,
    }
    return {**head, **results}


def _required(answer: dict[str, Any], what: str) -> dict[str, Any]:
    if "skipped" in answer:
        raise RuntimeError(f"{what} failed: {answer['skipped']}")
    return answer


def _one_group(
    names: Sequence[str],
    request: dict[str, Any],
    base: Worker,
    base_ready: dict[str, Any],
    base_times: list[dict[str, float]],
    settings: Settings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Starts the group's processes, then times them and the base in turn."""
    results: dict[str, Any] = {}
    running: dict[str, Worker] = {BASE: base}
    steps: dict[str, list[dict[str, float]]] = {BASE: []}
    with ExitStack() as stack:
        for name in names:
            say(f"{name}: memory and correctness")
            one = stack.enter_context(ExitStack())
            candidate = one.enter_context(worker(settings.time_limit))
            answer = candidate.ask({**request, "engine": name})
            results[name] = answer
            if "skipped" in answer:
                say(f"{name}: skipped: {answer['skipped']}")
                one.close()
                continue
            running[name] = candidate
            steps[name] = []
        if not (len(running) > 1 or not base_times):
            return {n: _skipped(a) for n, a in results.items()}
        for r in range(settings.rounds + 1):
            say(f"{', '.join(n for n in running if n != BASE) or BASE}: round {r} of {settings.rounds}")
            # Alternate who goes first, so that what one leaves behind in caches favours nobody.
            for name in sorted(running, key=list(running).index, reverse=bool(r % 2)):
                answer = running[name].ask({})
                if "skipped" in answer:
                    if name == BASE:
                        raise RuntimeError(f"Non-private training failed: {answer['skipped']}")
                    results[name] = answer
                    del running[name]
                elif r:
                    steps[name].append(answer)
    base_times += steps[BASE]
    return {
        n: _figures(a, steps[n], steps[BASE], base_ready["memory_mib"]) if n in running else _skipped(a)
        for n, a in results.items()
    }


def _skipped(answer: dict[str, Any]) -> dict[str, Any]:
    kept = {"skipped": answer["skipped"]}
    if answer.get("max_error") is not None:
        kept["max_error"] = answer["max_error"]
    return kept


def _median(steps: Sequence[dict[str, float]], what: str) -> float:
    return statistics.median(step[what] for step in steps)


def _figures(
    ready: dict[str, Any], steps: list[dict[str, float]], base: list[dict[str, float]], base_mib: float | None
) -> dict[str, Any]:
    ratios = [t["seconds"] / b["seconds"] for t, b in zip(steps, base, strict=True)]
    mib = ready["memory_mib"]
    return {
        "seconds": _median(steps, "seconds"),
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "memory_mib": mib,
        # Below 1 MiB the base is noise.
        "memory_ratio": mib / base_mib if mib is not None and base_mib and base_mib >= 1 else None,
        "max_error": ready["max_error"],
        "page_faults": _median(steps, "page_faults"),
    }


def commit() -> str | None:
    """Of these sources, with "+" where files have changed since; None outside a git checkout."""
    asked = ["git", "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def command() -> str:
    """What this process was started as, without folders."""
    main = sys.modules["__main__"].__spec__
    arguments = [Path(text).name if "/" in text else text for text in sys.argv[1:]]
    return shlex.join(["python", "-m", main.name if main else Path(sys.argv[0]).name, *arguments])


def processor() -> str:
    """The processor's name and how many of them there are, as the kernel tells (Linux)."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} logical"


def versions() -> dict[str, str]:
    """Of what the engines are made of, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    return found
