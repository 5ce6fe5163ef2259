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

from reticent.clip._kept import tensors_of
from reticent.clip._shared import SharedInputs
from reticent.errors import ConfigError
from reticent.rules import Form, Method

Planning = Literal["estimate", "measure"]
PLANNING: Final = ("estimate", "measure")
# How long what is kept for a parameter's sum stays: until the pass ends, until its group is whole, or no
# longer than the operation that its gradient came from.
Stay = Literal["pass", "group", "operation"]

# Rough rates of a device, only good for comparing methods: operations and bytes a second.
_RATES: Final = {"cpu": (1e11, 1e10), "cuda": (3e13, 1e12)}
# What a method may need for a moment, as a multiple of what the form itself holds; and a floor in bytes.
_PEAK_SHARE: Final = 4
_PEAK_FLOOR: Final = 64 << 20

# What is kept by default, over all parameters, as a multiple of what the forms hold. The little above pays
# where a layer's gradients are hardly larger than what they are made of (narrow keys and values).
_KEPT_SHARE: Final = 1.03

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
        held: bytes kept from the parameter's backward to the sums; 0 where the sum is added at once, or
            formed again by a second backward.
        measured: whether `seconds` was timed.
        candidates: every method that would do -> its (seconds, held bytes).
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
    norms_only: bool
    stays: Stay = "operation"


@dataclass(frozen=True, slots=True)
class _Choice:
    """A method, and for how many units at most it was chosen within the budget."""

    method: str
    units: int


@dataclass(slots=True, eq=False)
class _Count:
    """Bytes that are kept now, in all and by parameter, and the most at once; `least`: had all kept least."""

    of: dict[str, tuple[int, int]]
    now: int = 0
    least_now: int = 0
    most: int = 0
    least_most: int = 0

    def put(self, name: str, held: int, least: int) -> None:
        was, was_least = self.of.get(name, (0, 0))
        self.of[name] = (held, least)
        self.now += held - was
        self.least_now += least - was_least
        self.most = max(self.most, self.now)
        self.least_most = max(self.least_most, self.least_now)

    def drop(self, name: str) -> None:
        held, least = self.of.pop(name, (0, 0))
        self.now -= held
        self.least_now -= least


class PlannedAnew(Exception):
    """What was chosen for other shapes exceeds the budget with these; it is forgotten: run the pass again."""


class Planner:
    """Chooses methods, remembers them by the shapes that one unit has in a form, and says why.

    The number of units differs from batch to batch where batches are drawn: what was chosen for some is used
    for others too, where its momentary memory is affordable; with a `memory_budget`, for no more of them than
    it was chosen for.

    Args:
        memory_budget: bytes that may be kept between norms and sums, over all parameters at once. None: as
            much as the tensors that forms are made of and 3 % more, which is about what the activations
            took.
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
        self._count = _Count({})
        self._units = 0
        self._new = False
        self._shared = SharedInputs(remember=memory_budget is None)  # what it holds is not counted

    @property
    def limited(self) -> bool:
        """Whether a number of bytes was set."""
        return self._budget is not None

    def begin(self) -> None:
        """Start a sum over a physical batch."""
        self._count, self._units, self._new = _Count({}), 0, False

    def norm(self, name: str, form: Form, *, like: Tensor) -> Tensor:
        """Squared norms alone, (U,) float64: a second backward forms the sum, and nothing is kept for it.

        Args:
            name: the parameter.
            form: its per-unit gradients.
            like: the parameter, for timing.
        """
        seen = self._look(name, form, like, norms_only=True)
        seen.stays, seen.used = "operation", _fastest(_affordable(seen.methods, seen.own_bytes), seen).name
        return self._shared.settle(form, seen.used)[0]

    def settle(self, name: str, form: Form, *, stays: Stay, like: Tensor) -> tuple[Tensor, Form] | None:
        """Compute squared norms by the method chosen for this parameter.

        Args:
            name: the parameter.
            form: its per-unit gradients.
            stays: how long what is kept stays.
            like: the parameter, for timing.

        Returns:
            Squared norms, (U,) float64, and the form to keep for the sum. None: more has to be kept than the
            budget allows, and `end` will raise; what is kept already can be let go.
        """
        seen = self._look(name, form, like, norms_only=False)
        method = self._method(name, seen, stays)
        seen.used, seen.stays, self._units = method.name, stays, seen.units
        if stays == "operation":
            self.let_go(name)
        else:
            self._count.put(name, method.held, _least(seen).held)
        return None if self._exceeded() else self._shared.settle(form, method.name)

    def wait(self, name: str, form: Form) -> None:
        """Count a piece of a parameter's gradient that stays until its other pieces have come."""
        held, least = self._count.of.get(name, (0, 0))
        self._count.put(name, held + (own := _num_bytes(form)), least + own)

    def let_go(self, name: str) -> None:
        """Nothing is kept for this parameter any more."""
        self._count.drop(name)

    def forget_inputs(self) -> None:
        """Let go of the last input: the backward is over, or runs something of the model's."""
        self._shared.forget()

    def end(self) -> None:
        """End a sum: where something new was met, choose again for all parameters together.

        Raises:
            ConfigError[memory-budget]: what had to be kept at once exceeds the budget.
            PlannedAnew: what was kept exceeds it, and need not.
        """
        if self._exceeded():
            self._refuse_or_forget()
        if self._new:
            self._choose_all()

    def _exceeded(self) -> bool:
        return self._budget is not None and self._count.most > self._budget

    def _method(self, name: str, seen: _Seen, stays: Stay) -> Method:
        if stays == "pass":
            method = self._remembered(name, seen)
            self._new |= method is None
            return _least(seen) if method is None else method
        fitting = _affordable(seen.methods, seen.own_bytes)
        if stays == "group":
            # When the others of its group come is not known: nothing is taken above what must be.
            room = 0 if self._budget is not None else seen.own_bytes
            fitting = [m for m in fitting if m.held <= room]
        return _fastest(fitting, seen) if fitting else _least(seen)

    def _remembered(self, name: str, seen: _Seen) -> Method | None:
        """What was chosen for this parameter and a unit's shapes, where it will do for so many units."""
        choice = self._chosen.get(name, {}).get(seen.unit)
        if choice is None or (self._budget is not None and seen.units > choice.units):
            return None
        method = next((m for m in seen.methods if m.name == choice.method), None)
        if method is None or method.peak <= _affordable_peak(seen.own_bytes):
            return method
        return method if method in (_least(seen), *_affordable(seen.methods, seen.own_bytes)) else None

    def layers(self) -> list[LayerPlan]:
        """The choices, in the order in which the backward met the parameters."""
        plans = []
        for name, seen in self._seen.items():
            choice = self._chosen.get(name, {}).get(seen.unit) if seen.stays == "pass" else None
            names = {m.name for m in seen.methods}
            method = choice.method if choice is not None and choice.method in names else seen.used
            held = {m.name: 0 if seen.stays == "operation" else m.held for m in seen.methods}
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

    def _refuse_or_forget(self) -> None:
        assert self._budget is not None
        least, units = self._count.least_most, self._units
        if least <= self._budget:
            for name, seen in self._seen.items():
                self._chosen.get(name, {}).pop(seen.unit, None)
            raise PlannedAnew
        fitting = self._budget * units // least  # every form's tensors lie along the units
        way = (
            f"{fitting} of these {units} units fit at once: take a smaller physical batch"
            if fitting
            else f"Not even one unit fits: raise memory_budget to at least {-(-least // max(units, 1))} bytes"
        )
        raise ConfigError(
            f"Clipping must keep {least / 2**20:.1f} MiB between norms and sums, and memory_budget is "
            f"{self._budget / 2**20:.1f} MiB: short by {(least - self._budget) / 2**20:.1f} MiB. {way}. "
            "Or keep nothing: method='ghost' (a second backward), or per-layer clipping of parameters that "
            "are used once.",
            code="memory-budget",
        )

    def _choose_all(self) -> None:
        """From what keeps least, upgrade where a kept byte saves most time, within the budget."""
        chosen = {name: _least(seen) for name, seen in self._seen.items()}
        held = sum(m.held for m in chosen.values())
        own = sum(seen.own_bytes for seen in self._seen.values())
        budget = max(held, int(_KEPT_SHARE * own)) if self._budget is None else self._budget
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

    def _look(self, name: str, form: Form, like: Tensor, *, norms_only: bool) -> _Seen:
        """What is known of a parameter's form; looked at again only where it is another than last time."""
        unit, units = _unit_of(form)
        seen = self._seen.get(name)
        if seen is None or (seen.unit, seen.units, seen.norms_only) != (unit, units, norms_only):
            seen = self._seen[name] = self._seen_first(form, unit, units, like, norms_only)
        return seen

    def _seen_first(self, form: Form, unit: Signature, units: int, like: Tensor, norms_only: bool) -> _Seen:
        methods, own = form.methods(), _num_bytes(form)
        if norms_only:  # a gradient that is kept for nobody costs what one that is dropped does, and memory
            methods = tuple(m for m in methods if not m.name.startswith("keep")) or methods
        measured = self._measure and len(methods) > 1
        if measured:
            seconds = self._measured(form, _affordable(methods, own), unit, max(1, units), like)
        else:
            flops, moved = _RATES.get(like.device.type, _RATES["cuda"])
            seconds = {m.name: m.flops / flops + m.moved / moved for m in methods}
        return _Seen(
            unit=unit,
            units=units,
            used="",
            form=type(form).__name__,
            shapes=_shapes(form),
            own_bytes=own,
            methods=methods,
            seconds={m.name: seconds.get(m.name, math.inf) for m in methods},
            measured=measured,
            norms_only=norms_only,
        )

    def _measured(
        self, form: Form, methods: Sequence[Method], unit: Signature, units: int, like: Tensor
    ) -> dict[str, float]:
        """Seconds of each method; timed once for a unit's shapes, and scaled to the number of units."""
        found = self._per_unit.setdefault(unit, {})
        for m in methods:
            if m.name not in found:
                found[m.name] = _timed(form, m.name, like) / units
        _forget_oldest(self._per_unit, _MAX_TIMED)
        return {name: seconds * units for name, seconds in found.items()}


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


def _fastest(methods: Sequence[Method], seen: _Seen) -> Method:
    return min(methods, key=lambda m: seen.seconds[m.name])


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


def _num_bytes(form: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors_of(form))


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
