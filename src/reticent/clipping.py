"""How one unit's influence on a sum is bounded: the kinds of clipping, as torch-free frozen records.

Room: clipping (floor 0). May import `reticent.errors` only.

`sensitivity` and `groups` are the one place where a record becomes numbers: the engine clips by
them, the joint scales noise by them, the plan prints them.

Sources:
    [1] Abadi et al. 2016, arXiv:1607.00133 (flat; per layer).
    [2] Bu et al. 2022, arXiv:2206.07136 (automatic: AUTO-S with a stability constant, AUTO-V without).
    [3] Andrew et al. 2019, arXiv:1905.03871 (adaptive: the norm follows a quantile).
    [4] McMahan et al. 2017, arXiv:1710.06963 (per layer: sensitivity of the whole).
"""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from typing import Final, Literal, TypeAlias

from reticent.errors import ConfigError

_SMALLEST: Final = 1e-15
_LARGEST: Final = 1e15
_SMALLEST_STABILITY: Final = 1e-4
# Parts of a norm are taken a hair smaller, so that rounding cannot make them more than the whole.
_A_HAIR_LESS: Final = 1.0 - 1e-14


def _require(ok: bool, message: str, code: str) -> None:
    if not ok:
        raise ConfigError(message, code=code)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _check_norm(value: object, name: str = "max_norm") -> None:
    _require(
        isinstance(value, int | float) and _is_real(value) and _SMALLEST <= value <= _LARGEST,
        f"{name} must be a finite number > 0 (from 1e-15 to 1e15), got {value!r}.",
        "clip-norm",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatClipping:
    """Scale each unit's gradient to L2 norm at most `max_norm`, over all parameters together [1].

    Args:
        max_norm: clipping norm C, in loss units per weight unit; from 1e-15 to 1e15, where C and its
            square are far from the ends of float32 and rounding cannot change what C bounds.

    Raises:
        ConfigError[clip-norm]: `max_norm` is not a number in that range.
    """

    max_norm: float

    def __post_init__(self) -> None:
        _check_norm(self.max_norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutomaticClipping:
    """Weigh each unit's gradient with max_norm / (norm + stability): every unit counts alike [2].

    `max_norm` only scales the sum, and with it the learning rate, so nothing needs tuning. A zero
    gradient stays zero.

    Args:
        max_norm: bound of each unit's contribution.
        stability: gradients much shorter than this stay short in proportion (AUTO-S); the smallest allowed,
            1e-4, all but normalises the others (AUTO-V is the limit 0).

    Raises:
        ConfigError[clip-norm]: `max_norm` is out of range.
        ConfigError[clip-stability]: `stability` is not a finite number >= 1e-4. Below, the gradients of
            examples that are fitted already, which are rounding errors, would be blown up to the bound:
            rounding depends on the rest of the batch, so one example would move the others' share.
    """

    max_norm: float = 1.0
    stability: float = 0.01

    def __post_init__(self) -> None:
        _check_norm(self.max_norm)
        _require(
            _is_real(self.stability) and self.stability >= _SMALLEST_STABILITY,
            f"stability must be a finite number >= {_SMALLEST_STABILITY} (below, rounding errors would be "
            f"blown up to the bound, and rounding depends on the whole batch), got {self.stability!r}.",
            "clip-stability",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayerClipping:
    """Clip the gradient of each module that owns trainable parameters by itself [1, 4].

    The norms of the L groups are such that the square root of the sum of their squares is
    `max_norm`, which bounds the whole as flat clipping does.

    Args:
        max_norm: bound of each unit's contribution, over all groups together.
        split: "equal" gives every group max_norm / sqrt(L); "size" a share that grows as the square
            root of its number of parameters.

    Raises:
        ConfigError[clip-norm]: `max_norm` is out of range.
        ConfigError[clip-split]: `split` is neither.
    """

    max_norm: float
    split: Literal["equal", "size"] = "equal"

    def __post_init__(self) -> None:
        _check_norm(self.max_norm)
        _require(
            self.split in ("equal", "size"),
            f"split must be 'equal' or 'size', got {self.split!r}.",
            "clip-split",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedClipping:
    """Clip groups of parameters by themselves, each to a norm of its own.

    Args:
        max_norms: (pattern of parameter names, norm) for each group. Patterns are those of
            `fnmatch`, case matters, and the first that matches a parameter takes it: put "*" last.

    Raises:
        ConfigError[clip-norm]: a norm is out of range.
        ConfigError[clip-groups]: no group, a pattern given twice, or not pairs of text and number.
    """

    max_norms: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        pairs = self.max_norms
        well_formed = isinstance(pairs, tuple) and all(
            isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
        )
        _require(
            well_formed and len(pairs) > 0,
            'max_norms must be a tuple of (pattern, norm) pairs, e.g. (("head.*", 0.5), ("*", 1.0)), got '
            f"{pairs!r}.",
            "clip-groups",
        )
        patterns = [pattern for pattern, _ in pairs]
        _require(
            len(set(patterns)) == len(patterns),
            f"max_norms has a pattern twice, the second of which would be ignored: {patterns}.",
            "clip-groups",
        )
        for pattern, norm in pairs:
            _check_norm(norm, f"the norm of '{pattern}'")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveClipping:
    """Flat clipping whose norm follows a quantile of the units' norms, privately [3].

    Each step releases, beside the noised sum, a noised count of the units whose norm was at most C, and
    C is multiplied by exp(-learning_rate * (fraction - target_quantile)) for the next step. Gradient
    and count are one Gaussian mechanism on one sample: the plan's noise multiplier is that of the two
    together.

    Args:
        initial_max_norm: C of the first step.
        target_quantile: share of units that shall not be clipped, strictly between 0 and 1.
        learning_rate: how fast C moves; finite, > 0.
        count_noise_multiplier: noise on the count over the count's sensitivity; must be above the
            plan's noise multiplier. None: ten times the plan's, which costs the gradient 0.5 % more
            noise.
        per_layer: one norm, and one count, for each module that owns trainable parameters; they
            begin as `PerLayerClipping(initial_max_norm)` has them.
        min_norm: C never falls below it.
        max_norm: C never rises above it.

    Raises:
        ConfigError[clip-norm]: a norm is out of range, or they are not in order.
        ConfigError[clip-adaptive]: another value is out of range.
    """

    initial_max_norm: float
    target_quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise_multiplier: float | None = None
    per_layer: bool = False
    min_norm: float = 1e-6
    max_norm: float = 1e6

    def __post_init__(self) -> None:
        for name in ("initial_max_norm", "min_norm", "max_norm"):
            _check_norm(getattr(self, name), name)
        _require(
            self.min_norm <= self.initial_max_norm <= self.max_norm,
            f"norms must be in order min_norm <= initial_max_norm <= max_norm, got {self.min_norm!r}, "
            f"{self.initial_max_norm!r}, {self.max_norm!r}.",
            "clip-norm",
        )
        _require(
            _is_real(self.target_quantile) and 0.0 < self.target_quantile < 1.0,
            f"target_quantile must be strictly between 0 and 1, got {self.target_quantile!r}.",
            "clip-adaptive",
        )
        _require(
            _is_real(self.learning_rate) and 0.0 < self.learning_rate <= 10.0,
            f"learning_rate of the clipping norm must be above 0 and at most 10, got {self.learning_rate!r}.",
            "clip-adaptive",
        )
        count = self.count_noise_multiplier
        _require(
            count is None or (_is_real(count) and count > 0),
            f"count_noise_multiplier must be a finite number > 0, or None, got {count!r}.",
            "clip-adaptive",
        )
        _require(
            isinstance(self.per_layer, bool),
            f"per_layer must be True or False, got {self.per_layer!r}.",
            "clip-adaptive",
        )


# What one step's sum is clipped by, and what a plan may ask for.
StepClipping: TypeAlias = FlatClipping | AutomaticClipping | PerLayerClipping | GroupedClipping
Clipping: TypeAlias = StepClipping | AdaptiveClipping
KINDS: Final = (FlatClipping, AutomaticClipping, PerLayerClipping, GroupedClipping, AdaptiveClipping)


def sensitivity(clipping: Clipping) -> float:
    """How far one unit moves the clipped sum (L2, all parameters together); of the first step if adaptive."""
    match clipping:
        case AdaptiveClipping():
            return clipping.initial_max_norm
        case GroupedClipping(max_norms=((_, norm),)):
            return norm
        case GroupedClipping():
            return math.nextafter(math.hypot(*(norm for _, norm in clipping.max_norms)), math.inf)
        case _:
            return clipping.max_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Parameters that are clipped together, to `max_norm`."""

    pattern: str
    max_norm: float
    parameters: tuple[str, ...]


def groups(clipping: PerLayerClipping | GroupedClipping, sizes: Mapping[str, int]) -> tuple[Group, ...]:
    """The groups of a clipping by groups, in the order in which the engine reports their norms.

    Args:
        clipping: per layer or grouped.
        sizes: name -> number of elements, of every trainable parameter; a shared one under one name.

    Returns:
        One group for each pair of a `GroupedClipping`, in its order, or for each module that owns
        trainable parameters, those inside others first.

    Guarantee:
        Every parameter is in exactly one group, and the square root of the sum of the squared norms
        is at most `sensitivity(clipping)`.

    Raises:
        ConfigError[clip-groups]: a parameter matches no pattern, or a pattern takes no parameter.
    """
    if isinstance(clipping, GroupedClipping):
        taken = _by_first_match([pattern for pattern, _ in clipping.max_norms], sizes)
        return tuple(
            Group(pattern=pattern, max_norm=norm, parameters=taken[pattern])
            for pattern, norm in clipping.max_norms
        )
    taken = _by_first_match(module_patterns(sizes), sizes)
    total = sum(sizes.values())
    shares = {
        pattern: 1.0 / len(taken)
        if clipping.split == "equal"
        else sum(sizes[n] for n in names) / max(total, 1)
        for pattern, names in taken.items()
    }
    return tuple(
        Group(
            pattern=pattern,
            # A module whose parameters have no element gets no share, and needs a norm all the same.
            max_norm=max(clipping.max_norm * math.sqrt(shares[pattern]) * _A_HAIR_LESS, 5e-324),
            parameters=names,
        )
        for pattern, names in taken.items()
    )


def module_patterns(names: Iterable[str]) -> tuple[str, ...]:
    """A pattern for each module that owns one of these parameters; inner modules come before outer ones."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    inner_first = sorted(owners, key=lambda owner: -owner.count(".") if owner else 1)
    return tuple(f"{escape(owner)}.*" if owner else "*" for owner in inner_first)


def _by_first_match(patterns: Iterable[str], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    taken: dict[str, tuple[str, ...]] = dict.fromkeys(patterns, ())
    unmatched = []
    for name in names:
        first = next((pattern for pattern in taken if fnmatchcase(name, pattern)), None)
        if first is None:
            unmatched.append(name)
        else:
            taken[first] = (*taken[first], name)
    idle = [pattern for pattern, found in taken.items() if not found]
    _require(
        not unmatched,
        f"No group of max_norms takes these trainable parameters: {_list(unmatched)}. Add a pattern for "
        'them, e.g. ("*", norm) at the end, or freeze them with requires_grad_(False).',
        "clip-groups",
    )
    _require(
        not idle,
        f"These patterns of max_norms take no trainable parameter: {_list(idle)}. The first pattern that "
        "matches takes a parameter: correct them, or leave them out.",
        "clip-groups",
    )
    return taken


def _list(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
