"""Rates of a device, fitted to the time of private steps of a few reference models.

Room: cost. May import torch, SciPy, `reticent.{clip,noise,train}`.

Times are of the whole private pass: forward, backward, norms, clipped sums; the shortest of several, since
whatever else runs only adds. The fit is of relative errors, with no rate below zero; each reference is then
predicted by a fit without it, and the worst miss is told.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import psutil
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional as F

from reticent.bounded import BoundedSum
from reticent.clip import ClipEngine
from reticent.cost._features import Features, features_of
from reticent.cost._hardware import Hardware
from reticent.noise import CipherNoise, add_noise
from reticent.train import PeakMemory

_USABLE = 0.9  # of a device's memory
_NOISE_COORDINATES = 2_000_000


@dataclass(frozen=True, slots=True, eq=False)
class _Reference:
    name: str
    model: nn.Module
    shape: tuple[int, ...]
    num_units: int


class _Decoder(nn.Module):
    """Transformer blocks over made-up embeddings."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x_BTI: Tensor) -> Tensor:
        for block in self.blocks:
            x_BTI = block(x_BTI)
        return self.head(x_BTI.mean(1))


def _convolutions(width: int) -> nn.Module:
    parts: list[nn.Module] = []
    for k, (a, b) in enumerate(((3, width), (width, 2 * width), (2 * width, 2 * width))):
        parts += [nn.Conv2d(a, b, 3, padding=1, stride=2 if k else 1), nn.GroupNorm(4, b), nn.SiLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def _references() -> Iterator[_Reference]:
    for width in (256, 1024):
        for units in (32, 256):
            layers = (
                nn.Linear(784, width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Linear(width, 10),
            )
            yield _Reference(f"MLP of width {width}", nn.Sequential(*layers), (784,), units)
    for width in (16, 64):
        for units in (8, 32):
            yield _Reference(f"convolutions of width {width}", _convolutions(width), (3, 32, 32), units)
    for width, layers in ((128, 4), (384, 2)):
        for units in (4, 16):
            yield _Reference(f"Transformer of width {width}", _Decoder(width, layers), (64, width), units)


def measure(
    device: torch.device | str = "cpu",
    *,
    bandwidth: float | None = None,
    repeats: int = 5,
    report: Callable[[str], None] = lambda text: None,
) -> Hardware:
    """Measure a device: under a minute where nothing else runs on it.

    Args:
        device: of a rank.
        bandwidth: bytes a second between ranks, if known; it is not measured.
        repeats: of each time, of which the shortest counts.
        report: is told what is measured.

    Raises:
        ConfigError: the engine refuses the device.
    """
    device = torch.device(device)
    counted: list[Features] = []
    seconds, factors = [], []
    for reference in _references():
        report(f"{reference.name}, {reference.num_units} examples")
        found = _time(reference, device, repeats)
        counted.append(found[0])
        seconds.append(found[1])
        factors.append(found[2])
    rates = _fit(counted, seconds)
    return Hardware(
        name=_name(device),
        source="measured",
        seconds_per_operation=rates[0],
        seconds_per_byte=rates[1],
        seconds_per_call=rates[2],
        noise_seconds=_noise_seconds(device, repeats),
        memory_factor=max(1.0, statistics.median(factors)),
        memory=int(_USABLE * _memory(device)),
        bandwidth=bandwidth,
        off_by=_off_by(counted, seconds),
        versions={name: version(name) for name in ("reticent", "torch")},
        note=f"{torch.get_num_threads()} threads; float32" if device.type == "cpu" else "float32",
    )


def _time(reference: _Reference, device: torch.device, repeats: int) -> tuple[Features, float, float]:
    """Features, least seconds, and peak memory over the forward's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = reference.model.to(device)
        x = torch.randn(reference.num_units, *reference.shape, device=device)
    y = torch.arange(reference.num_units, device=device) % 10

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    counted = features_of(lambda: losses((x, y)), num_units=reference.num_units)
    engine = ClipEngine(model, max_norm=1.0)
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    engine.clipped_sum(losses, (x, y), out=sums)  # proves the layout, once in a run
    times = []
    for _ in range(repeats):
        _wait_for(device)
        began = time.perf_counter()
        engine.clipped_sum(losses, (x, y), out=sums)
        _wait_for(device)
        times.append(time.perf_counter() - began)
    with PeakMemory() as peak:
        engine.clipped_sum(losses, (x, y), out=sums)
    return counted, min(times), peak.bytes / counted.bytes


def _fit(counted: list[Features], seconds: list[float]) -> np.ndarray:
    """Seconds per operation, byte and call, none below zero, of least relative error."""
    asked = np.array([[f.operations, f.bytes, f.calls] for f in counted], dtype=np.float64)
    scale = asked.max(0)
    relative = asked / scale / np.array(seconds)[:, None]
    return nnls(relative, np.ones(len(seconds)))[0] / scale


def _off_by(counted: list[Features], seconds: list[float]) -> float:
    worst = 1.0
    for out in range(len(counted)):
        rest = [i for i in range(len(counted)) if i != out]
        rates = _fit([counted[i] for i in rest], [seconds[i] for i in rest])
        f = counted[out]
        ratio = float(rates @ np.array([f.operations, f.bytes, f.calls])) / seconds[out]
        worst = max(worst, ratio, 1.0 / ratio)
    return worst


def _noise_seconds(device: torch.device, repeats: int) -> float:
    sums = BoundedSum(
        total={"w": torch.zeros(_NOISE_COORDINATES, device=device)}, bound=1.0, norms=torch.empty(0)
    )
    source, times = CipherNoise.fresh(), []
    for _ in range(repeats):
        began = time.perf_counter()
        add_noise(sums, noise_multiplier=1.0, source=source)
        _wait_for(device)
        times.append(time.perf_counter() - began)
    return min(times) / _NOISE_COORDINATES


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total
