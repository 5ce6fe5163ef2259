"""What ledger and noise cost a step, and how long the noise of well-known plans takes to solve for."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import vision
from reticent.account import calibrate_noise_multiplier
from reticent.account.ledger import Ledger
from reticent.bounded import BoundedSum
from reticent.clip import ClipEngine
from reticent.noise import CipherNoise, add_noise
from reticent.records import Budget, Mechanism, NeighbouringRelation, SamplingScheme

STEP_SECONDS = 0.1  # of a run of ten steps a second
# name, sampling probability, steps, epsilon, delta
PLANS = (
    ("CIFAR-10, De et al.", 4096 / 50_000, 2000, 8.0, 1e-5),
    ("CIFAR-10, epsilon 1", 4096 / 50_000, 875, 1.0, 1e-5),
    ("ImageNet from scratch", 16_384 / 1_281_167, 72_000, 8.0, 8e-7),
    ("SST-2, three epochs", 1024 / 67_349, 198, 3.0, 1e-5),
    ("MNIST", 256 / 60_000, 14_062, 2.4, 1e-5),
    ("E2E, ten epochs", 1024 / 42_061, 410, 3.0, 8e-6),
    ("full batch, 100 steps", 1.0, 100, 8.0, 1e-5),
)


def ledger(num_steps=1000):
    """Append steps in a temporary folder; each is on disk (fsync) when its time is taken."""
    step = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.01, noise_multiplier=1.0)
    with tempfile.TemporaryDirectory() as name:
        path, seconds = Path(name) / "ledger.jsonl", []
        with Ledger.create(
            path,
            run_id="a",
            relation=NeighbouringRelation.ZERO_OUT,
            delta=1e-5,
            num_steps=num_steps,
            public={},
        ) as made:
            before = path.stat().st_size
            began_cpu = time.process_time()
            for _ in range(num_steps):
                began = time.perf_counter()
                made.append_step(step)
                seconds.append(time.perf_counter() - began)
            cpu = (time.process_time() - began_cpu) / num_steps
        size = (path.stat().st_size - before) / num_steps
    return {
        "ledger: bytes a step": round(size, 2),
        "ledger: share of a 0.1 s step, median wall time": statistics.median(seconds) / STEP_SECONDS,
        "ledger: share of a 0.1 s step, CPU time": cpu / STEP_SECONDS,
    }


def noise(num_coordinates=10_000_000):
    """What a coordinate's noise costs, beside torch's own draw, and the share of a small step."""
    sums = BoundedSum(total={"w": torch.zeros(num_coordinates)}, bound=1.0, norms=torch.empty(0))
    source = CipherNoise.fresh()
    ours = _cpu_seconds(lambda: add_noise(sums, noise_multiplier=1.0, source=source))
    plain = _cpu_seconds(lambda: torch.zeros(num_coordinates).add_(torch.randn(num_coordinates)))
    work = vision.wide_resnet(16, 4, 64)
    engine = ClipEngine(work.model, max_norm=1.0)
    engine.clipped_sum(work.losses, work.batch)  # what a run does once
    step = _cpu_seconds(lambda: engine.clipped_sum(work.losses, work.batch))
    coordinates = sum(p.numel() for p in work.trainable().values())
    return {
        "noise: ns a coordinate, CPU time": round(1e9 * ours / num_coordinates, 1),
        "noise by torch.randn: ns a coordinate": round(1e9 * plain / num_coordinates, 1),
        f"noise: share of a step of {work.num_examples()} images through WRN-16-4": round(
            ours / num_coordinates * coordinates / step, 4
        ),
    }


def _cpu_seconds(run, times=5):
    seconds = []
    for _ in range(times):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return min(seconds)  # whatever else runs only adds: threads that wait for a core spin


def calibration():
    """CPU seconds to solve for the noise of each plan."""
    found = {}
    for name, prob, num_steps, epsilon, delta in PLANS:
        began = time.process_time()
        calibrate_noise_multiplier(
            budget=Budget(epsilon=epsilon, delta=delta),
            scheme=SamplingScheme.FULL_BATCH if prob == 1.0 else SamplingScheme.POISSON,
            sampling_prob=prob,
            num_steps=num_steps,
        )
        found[name] = round(time.process_time() - began, 2)
    return {"CPU seconds to calibrate": found}
