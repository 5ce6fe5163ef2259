"""Picks, for each parameter, how its norms and sums are computed.

All methods give the same numbers up to rounding; they differ in time and memory. Costs come from
shapes alone, or from timing the candidates once on the device at hand.

Room: clip. May import torch, `reticent.errors`, `reticent.rules`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
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

# Shapes that a parameter's choices are remembered for, and timings: the oldest are forgotten.
_MAX_SHAPES: Final = 64
_MAX_TIMED: Final = 4096

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
    """One parameter's form in the last call, and by what method it was settled."""

    unit: Signature
    units: int
    used: str
    form: str
    shapes: str
    own_bytes: int
    methods: tuple[Method, ...]
    seconds: dict[str, float]
    measured: bool


@dataclass(frozen=True, slots=True)
class _Choice:
    """A method, and for how many units at most it was chosen within the budget."""

    method: str
    units: int


class Planner:
    """Chooses methods, remembers them by the shapes that one unit has in a form, and says why.

    The number of units differs from batch to batch where batches are drawn: what was chosen for some is used
    for others too, where its momentary memory is affordable; with a `memory_budget`, for no more of them than
    it was chosen for.

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
        self._chosen: dict[str, dict[Signature, _Choice]] = {}
        self._seen: dict[str, _Seen] = {}
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
        unit, units = _unit_of(form)
        seen = self._seen.get(name)
        if seen is None or seen.units != units or seen.unit != unit:
            seen = self._seen[name] = self._look(form, unit, units, like)
        if holding:
            method = self._remembered(name, seen)
            if method is None:
                self._new, method = True, _least(seen)
            self._held += method.held
            self._require_budget(units)
        else:
            method = min(_affordable(seen.methods, seen.own_bytes), key=lambda m: seen.seconds[m.name])
        seen.used = method.name
        return form.settle(method.name)

    def _remembered(self, name: str, seen: _Seen) -> Method | None:
        """What was chosen for this parameter and a unit's shapes, where it will do for so many units."""
        choice = self._chosen.get(name, {}).get(seen.unit)
        if choice is None or (self._budget is not None and seen.units > choice.units):
            return None
        method = next((m for m in seen.methods if m.name == choice.method), None)
        if method is None or method.peak <= _affordable_peak(seen.own_bytes):
            return method
        return method if method in (_least(seen), *_affordable(seen.methods, seen.own_bytes)) else None

    def end(self, *, holding: bool) -> None:
        """End a sum: where something new was met, choose again for all parameters together."""
        if self._new and holding:
            self._choose_all()

    def layers(self) -> list[LayerPlan]:
        """The choices, in the order in which the backward met the parameters."""
        plans = []
        for name, seen in self._seen.items():
            choice = self._chosen.get(name, {}).get(seen.unit)
            names = {m.name for m in seen.methods}
            method = choice.method if choice is not None and choice.method in names else seen.used
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

    def _require_budget(self, units: int) -> None:
        if self._budget is not None and self._held > self._budget:
            fitting = self._budget * units // self._held
            raise ConfigError(
                f"Clipping must keep more than {self._held / 2**20:.1f} MiB between norms and sums, and "
                f"memory_budget is {self._budget / 2**20:.1f} MiB: short by at least "
                f"{(self._held - self._budget) / 2**20:.1f} MiB. A smaller physical batch keeps less in "
                f"proportion: no more than {fitting} of these {units} units can fit. method='ghost' keeps "
                "nothing, for a second backward; per-layer clipping keeps nothing at all.",
                code="memory-budget",
            )

    def _choose_all(self) -> None:
        """From what keeps least, upgrade where a kept byte saves most time, within the budget."""
        chosen = {name: _least(seen) for name, seen in self._seen.items()}
        held = sum(m.held for m in chosen.values())
        own = sum(seen.own_bytes for seen in self._seen.values())
        budget = max(held, own) if self._budget is None else self._budget
        upgrades = []
        for name, seen in self._seen.items():
            for m in _affordable(seen.methods, seen.own_bytes):
                saved = seen.seconds[chosen[name].name] - seen.seconds[m.name]
                if saved > 0:
                    upgrades.append((saved / max(m.held - chosen[name].held, 1), name, m))
        for _, name, m in sorted(upgrades, key=lambda u: -u[0]):
            now = chosen[name]
            seconds = self._seen[name].seconds
            if seconds[m.name] < seconds[now.name] and held + m.held - now.held <= budget:
                held += m.held - now.held
                chosen[name] = m
        for name, m in chosen.items():
            seen, choices = self._seen[name], self._chosen.setdefault(name, {})
            choices.pop(seen.unit, None)  # the newest come last
            choices[seen.unit] = _Choice(m.name, seen.units)
            _forget_oldest(choices, _MAX_SHAPES)

    def _look(self, form: Form, unit: Signature, units: int, like: Tensor) -> _Seen:
        methods, own = form.methods(), _num_bytes(form)
        if self._measure and len(methods) > 1:
            seconds = self._measured(form, _affordable(methods, own), unit, max(1, units), like)
            measured = True
        else:
            flops, moved = _RATES.get(like.device.type, _RATES["cuda"])
            seconds = {m.name: m.flops / flops + m.moved / moved for m in methods}
            measured = False
        seconds = {m.name: seconds.get(m.name, math.inf) for m in methods}
        return _Seen(
            unit=unit,
            units=units,
            used="",
            form=type(form).__name__,
            shapes=_shapes(form),
            own_bytes=own,
            methods=methods,
            seconds=seconds,
            measured=measured,
        )

    def _measured(
        self, form: Form, methods: Sequence[Method], unit: Signature, units: int, like: Tensor
    ) -> dict[str, float]:
        """Seconds of each method; timed once for a unit's shapes, and scaled to the number of units."""
        if unit not in self._per_unit:
            self._per_unit[unit] = {m.name: _timed(form, m.name, like) / units for m in methods}
            _forget_oldest(self._per_unit, _MAX_TIMED)
        return {name: seconds * units for name, seconds in self._per_unit[unit].items()}


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
    limit = _affordable_peak(own_bytes)
    return [m for m in methods if m.peak <= limit] or [min(methods, key=lambda m: m.peak)]


def _affordable_peak(own_bytes: int) -> int:
    return max(_PEAK_SHARE * own_bytes, _PEAK_FLOOR)


def _least(seen: _Seen) -> Method:
    """What keeps least; of several, the fastest."""
    return min(seen.methods, key=lambda m: (m.held, seen.seconds[m.name]))


def _forget_oldest(entries: dict[Any, Any], at_most: int) -> None:
    while len(entries) > at_most:
        del entries[next(iter(entries))]


def _positive(value: object) -> bool:
    return isinstance(value, int) and value > 0


@cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind)) if is_dataclass(kind) else ()


def _parts(form: Any) -> list[Any]:
    return [getattr(form, name) for name in _fields(type(form))]


def _unit_of(form: Any) -> tuple[Signature, int]:
    """What a form is like whatever its number of units; and that number."""
    units: int | None = getattr(form, "num_units", None)
    rows: int | None = None  # of the first tensor, which lies along the units
    found: list[Any] = [type(form)]
    for name in _fields(type(form)):
        part = getattr(form, name)
        if isinstance(part, Tensor):
            found.append((part.shape[1:], part.dtype, part.device.type))
            rows = part.shape[0] if rows is None and part.dim() else rows
        elif _fields(type(part)):
            unit, inner = _unit_of(part)
            found.append(unit)
            rows = (inner or None) if rows is None else rows  # a part without tensors has none
        elif name != "num_units":
            found.append(part)
    if units is None:
        return tuple(found), rows or 0
    return (*found, (rows or 0) // max(units, 1)), units


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
