"""Picks, for each parameter, how its norms and sums are computed.

All methods give the same numbers up to rounding; they differ in time and memory. Costs come from
shapes alone, or from timing the candidates once on the device at hand.

Room: clip. May import torch, `reticent.errors`, `reticent.rules`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from reticent.errors import ConfigError
from reticent.rules import Form, Method

Planning = Literal["estimate", "measure"]
PLANNING: Final = ("estimate", "measure")

# Rough rates of a device, only good for comparing methods: operations and bytes a second.
_RATES: Final = {"cpu": (1e11, 1e10), "cuda": (3e13, 1e12)}
# What a method may need for a moment, as a multiple of what the form itself holds; and a floor in bytes.
_PEAK_SHARE: Final = 4
_PEAK_FLOOR: Final = 64 << 20

Signature = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """How one parameter's gradient is clipped.

    Args:
        name: the parameter.
        form: the form its per-unit gradients have.
        shapes: of the form's tensors.
        method: the choice.
        why: in words.
        seconds: of norm and sum beyond the plain summed gradient (estimated), or of both (measured).
        held: bytes kept from the parameter's backward to the sums.
        measured: whether `seconds` was timed.
        candidates: every method -> its (seconds, held bytes).
    """

    name: str
    form: str
    shapes: str
    method: str
    why: str
    seconds: float
    held: int
    measured: bool
    candidates: Mapping[str, tuple[float, int]]


@dataclass(slots=True, eq=False)
class _Seen:
    """One parameter's form in the last call."""

    form: str
    shapes: str
    own_bytes: int
    methods: tuple[Method, ...]
    seconds: dict[str, float]
    measured: bool


class Planner:
    """Chooses methods, remembers them by the form's shapes, and says why.

    Args:
        memory_budget: bytes that may be kept between norms and sums, over all parameters. None: as much
            as the tensors that forms are made of, which is about what the activations took.
        planning: "estimate" compares costs from shapes; "measure" times the candidates the first
            time a form is met.

    Raises:
        ConfigError[planning]: unknown `planning`.
        ConfigError[memory-budget]: not a positive integer.
    """

    def __init__(self, *, memory_budget: int | None = None, planning: Planning = "estimate") -> None:
        if planning not in PLANNING:
            raise ConfigError(f"planning must be one of {PLANNING}, got {planning!r}.", code="planning")
        if memory_budget is not None and (isinstance(memory_budget, bool) or not _positive(memory_budget)):
            raise ConfigError(
                f"memory_budget must be a positive number of bytes, got {memory_budget!r}.",
                code="memory-budget",
            )
        self._budget, self._measure = memory_budget, planning == "measure"
        self._per_unit: dict[Signature, dict[str, float]] = {}
        self._chosen: dict[tuple[str, Signature], str] = {}
        self._seen: dict[str, tuple[Signature, _Seen]] = {}
        self._held = 0
        self._new = False

    def begin(self) -> None:
        """Start a sum over a physical batch."""
        self._held, self._new = 0, False

    def settle(self, name: str, form: Form, *, holding: bool, like: Tensor) -> tuple[Tensor, Form]:
        """Compute squared norms by the method chosen for this parameter.

        Args:
            name: the parameter.
            form: its per-unit gradients.
            holding: whether what is kept stays until the pass ends.
            like: the parameter, for timing.

        Returns:
            Squared norms, (U,) float64, and the form to keep for the sum.

        Raises:
            ConfigError[memory-budget]: what must be kept exceeds the budget.
        """
        signature = _signature(form)
        key = (name, signature)
        self._new |= key not in self._chosen
        if name not in self._seen or self._seen[name][0] != signature:
            self._seen[name] = (signature, self._look(form, like))
        seen = self._seen[name][1]
        if holding:
            least = min(seen.methods, key=lambda m: (m.held, seen.seconds[m.name]))
            method = self._chosen.get(key, least.name)
            self._held += next(m.held for m in seen.methods if m.name == method)
            self._require_budget()
        else:
            method = min(_affordable(seen.methods, seen.own_bytes), key=lambda m: seen.seconds[m.name]).name
            self._chosen[key] = method
        return form.settle(method)

    def end(self, *, holding: bool) -> None:
        """End a sum: where something new was met, choose again for all parameters together."""
        if self._new and holding:
            self._choose_all()

    def layers(self) -> list[LayerPlan]:
        """The choices, in the order in which the backward met the parameters."""
        plans = []
        for name, (signature, seen) in self._seen.items():
            method = self._chosen.get((name, signature)) or seen.methods[0].name
            held = {m.name: m.held for m in seen.methods}
            plans.append(
                LayerPlan(
                    name=name,
                    form=seen.form,
                    shapes=seen.shapes,
                    method=method,
                    why=_why(method, seen),
                    seconds=seen.seconds[method],
                    held=held[method],
                    measured=seen.measured,
                    candidates={m: (seen.seconds[m], held[m]) for m in held},
                )
            )
        return plans

    def _require_budget(self) -> None:
        if self._budget is not None and self._held > self._budget:
            raise ConfigError(
                f"Clipping must keep more than {self._held / 2**20:.1f} MiB between norms and sums, and "
                f"memory_budget is {self._budget / 2**20:.1f} MiB: short by at least "
                f"{(self._held - self._budget) / 2**20:.1f} MiB. A smaller physical batch keeps less in "
                "proportion; method='ghost' keeps nothing, for a second backward; per-layer clipping keeps "
                "nothing at all.",
                code="memory-budget",
            )

    def _choose_all(self) -> None:
        """From what keeps least, upgrade where a kept byte saves most time, within the budget."""
        chosen = {
            name: min(seen.methods, key=lambda m, s=seen: (m.held, s.seconds[m.name]))
            for name, (_, seen) in self._seen.items()
        }
        held = sum(m.held for m in chosen.values())
        own = sum(seen.own_bytes for _, seen in self._seen.values())
        budget = max(held, own) if self._budget is None else self._budget
        upgrades = []
        for name, (_, seen) in self._seen.items():
            for m in _affordable(seen.methods, seen.own_bytes):
                saved = seen.seconds[chosen[name].name] - seen.seconds[m.name]
                if saved > 0:
                    upgrades.append((saved / max(m.held - chosen[name].held, 1), name, m))
        for _, name, m in sorted(upgrades, key=lambda u: -u[0]):
            now = chosen[name]
            seconds = self._seen[name][1].seconds
            if seconds[m.name] < seconds[now.name] and held + m.held - now.held <= budget:
                held += m.held - now.held
                chosen[name] = m
        for name, m in chosen.items():
            self._chosen[name, self._seen[name][0]] = m.name

    def _look(self, form: Form, like: Tensor) -> _Seen:
        methods, own = form.methods(), _num_bytes(form)
        if self._measure and len(methods) > 1:
            seconds = self._measured(form, _affordable(methods, own), like)
            measured = True
        else:
            flops, moved = _RATES.get(like.device.type, _RATES["cuda"])
            seconds = {m.name: m.flops / flops + m.moved / moved for m in methods}
            measured = False
        seconds = {m.name: seconds.get(m.name, math.inf) for m in methods}
        return _Seen(type(form).__name__, _shapes(form), own, methods, seconds, measured)

    def _measured(self, form: Form, methods: Sequence[Method], like: Tensor) -> dict[str, float]:
        """Seconds of each method; timed once for a unit's shapes, and scaled to the number of units."""
        shapes = _signature(form, of_unit=True)
        units = max(1, max(t.shape[0] for t in _tensors(form)))
        if shapes not in self._per_unit:
            self._per_unit[shapes] = {m.name: _timed(form, m.name, like) / units for m in methods}
        return {name: seconds * units for name, seconds in self._per_unit[shapes].items()}


def _timed(form: Form, method: str, like: Tensor) -> float:
    """Seconds of norm and sum by one method: the faster of two runs."""
    scratch = torch.zeros_like(
        like, dtype=torch.promote_types(like.dtype, torch.float32), requires_grad=False
    )
    times = []
    for _ in range(2):
        _synchronize(like)
        start = time.perf_counter()
        square_U, held = form.settle(method)
        held.add_weighted(torch.ones_like(square_U), None, scratch)
        _synchronize(like)
        times.append(time.perf_counter() - start)
    return min(times)


def _synchronize(like: Tensor) -> None:
    if like.device.type == "cuda":
        torch.cuda.synchronize(like.device)


def _affordable(methods: Sequence[Method], own_bytes: int) -> Sequence[Method]:
    limit = max(_PEAK_SHARE * own_bytes, _PEAK_FLOOR)
    return [m for m in methods if m.peak <= limit] or [min(methods, key=lambda m: m.peak)]


def _positive(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _parts(form: Any) -> list[Any]:
    return [getattr(form, f.name) for f in fields(form)] if is_dataclass(form) else []


def _signature(form: Any, *, of_unit: bool = False) -> Signature:
    parts: list[Any] = [type(form).__name__]
    for part in _parts(form):
        if isinstance(part, Tensor):
            parts.append((tuple(part.shape[1 if of_unit else 0 :]), part.dtype, part.device.type))
        elif is_dataclass(part):
            parts.append(_signature(part, of_unit=of_unit))
        elif not of_unit or not isinstance(part, int):
            parts.append(part)
    return tuple(parts)


def _tensors(form: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for part in _parts(form):
        if isinstance(part, Tensor):
            found.append(part)
        elif is_dataclass(part):
            found += _tensors(part)
    return found


def _num_bytes(form: Any) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(form))


def _shapes(form: Any) -> str:
    found = []
    for part in _parts(form):
        if isinstance(part, Tensor):
            found.append("×".join(str(n) for n in part.shape) or "1")
        elif is_dataclass(part) and (inner := _shapes(part)):
            found.append(inner)
    return " · ".join(found)


def _why(method: str, seen: _Seen) -> str:
    if len(seen.methods) == 1:
        return "the only method"
    others = {m: s for m, s in seen.seconds.items() if m != method}
    best = min(others, key=lambda m: others[m])
    word = "measured" if seen.measured else "estimated"
    mine = seen.seconds[method]
    if mine <= others[best]:
        return f"fastest {word} (next: {best}, {_ms(others[best])})"
    return f"within the memory budget ({best} would take {_ms(others[best])}, {word})"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"
