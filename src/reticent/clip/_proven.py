"""Which rows belong to which unit at a meeting: proofs, kept and used again.

Room: clip. May import torch, `reticent.rules`, `reticent.errors`.

Shape letters (this file): U units.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from reticent.clip._capture import Capture
from reticent.clip._entry import Entry, Key, describe
from reticent.clip._probe import Fingerprints, prove_layout
from reticent.errors import CoupledExamples, UnsupportedModel
from reticent.rules import Layout

# Proven layouts: meeting -> entries of one unit along the axis -> layout; 0: however many there are.
Proven = dict[Key, dict[int, Layout]]
# What proofs hold for: operations by name, in order; losses and rows of a unit.
Context = tuple[int, ...]
_MAX_CONTEXTS: Final = 256
_FIRST_AGAIN: Final = 16


def due_again(times: int) -> bool:
    """Whether the use of this number, from 1, is proven anew: the 16th, 32nd, 64th, ...

    What mixes examples only in some batches, or only later in training, may have been no part of the first
    proof.
    """
    return times >= _FIRST_AGAIN and times & (times - 1) == 0


class NotProven(Exception):
    """An optional meeting is none, or a meeting appeared that has not been proven: run again."""

    def __init__(self, not_meetings: frozenset[Key] = frozenset()) -> None:
        super().__init__()
        self.not_meetings = not_meetings


class Proofs:
    """What one engine knows of where the units lie in its model's recorded operations: no data."""

    def __init__(self) -> None:
        self.not_meetings: frozenset[Key] = frozenset()  # optional ones that are none
        self._layouts: dict[Context, Proven] = {}
        self._times: Counter[Context] = Counter()

    def of(self, context: Context) -> Proven:
        """Proofs of one context, to read and to add to."""
        if context not in self._layouts and len(self._layouts) >= _MAX_CONTEXTS:
            self.forget()
        return self._layouts.setdefault(context, {})

    def needed(self, context: Context, entries: Sequence[Entry], units: int) -> bool:
        """Whether something is not proven, or due to be proven anew."""
        proven = self.of(context)
        return due_again(self._times[context] + 1) or not all(is_proven(e, proven, units) for e in entries)

    def used(self, context: Context) -> None:
        """Count a sum of several units that rested on the proofs of a context."""
        self._times[context] += 1

    def forget(self) -> None:
        """Prove everything anew."""
        self._layouts.clear()
        self._times.clear()
        self.not_meetings = frozenset()


def remember(
    proven: Proven,
    key: Key,
    layouts: Mapping[int, Layout | None],
    shapes: Mapping[int, torch.Size],
    units: int,
) -> None:
    """Keep a proof, if all outputs of the operation have the one layout."""
    distinct = set(layouts.values())
    layout = distinct.pop()
    if distinct or layout is None:
        return
    for i in layouts:
        size = shapes[i][layout.axis] // units
        any_size = layout.inner is None and size > 1  # of a single entry, no order is proven
        proven.setdefault(key, {})[0 if any_size else size] = layout


def is_proven(entry: Entry, proven: Proven, units: int) -> bool:
    """Whether the layout of an operation's outputs is known; or that they receive no gradient."""
    known = proven.get(entry.key)
    if not known:
        return known is not None
    try:
        for shape in entry.shapes.values():
            reused(known, units, shape)
    except NotProven:
        return False
    return True


def reused(proven: Mapping[int, Layout], units: int, shape: Sequence[int]) -> Layout:
    """The layout proven for an output of this size, for another number of units."""
    for size, layout in proven.items():
        here = layout if layout.num_units == units else replace(layout, num_units=units)
        fits = here.axis < len(shape) and here.fits(shape[here.axis])
        if fits and size in (0, shape[here.axis] // units):
            return here
    raise NotProven


def layouts_of(
    capture: Capture,
    ones: Fingerprints,
    scaled: Fingerprints,
    weights_U: Tensor,
    proven: Proven,
    *,
    has_batch: bool,
) -> dict[Key, dict[int, Layout | None]]:
    """The layout of every output that received a gradient, from the prints of two backward passes.

    Raises:
        CoupledExamples[gradient-mixes-examples]: no layout explains both.
        UnsupportedModel[unstable-forward]: the passes met other operations, or other shapes.
        NotProven: what may be no meeting is none.
    """
    if ones.shapes != scaled.shapes:
        raise UnsupportedModel(
            "What a reentrant checkpoint ran again in one backward was not what it ran in the next: it "
            "depends on a counter, or on draws of its own. Make it do the same each time, use "
            "use_reentrant=False, or method='loop'.",
            code="unstable-forward",
        )
    found: dict[Key, dict[int, Layout | None]] = {}
    for key, prints in ones.prints.items():
        unique = True
        found[key] = {}
        for i, first in prints.items():
            layout, only = prove_layout(
                ones.shapes[key][i], ones.dtypes[key], first, scaled.prints[key][i], weights_U
            )
            found[key][i] = layout
            unique &= only
        if unique:
            remember(proven, key, found[key], ones.shapes[key], len(weights_U))
    for entry in capture.entries:
        if entry.key not in found:
            proven.setdefault(entry.key, {})
    _refuse_mixing(capture, found, ones, has_batch)
    return found


def _refuse_mixing(
    capture: Capture,
    found: Mapping[Key, Mapping[int, Layout | None]],
    ones: Fingerprints,
    has_batch: bool,
) -> None:
    mixed = [key for key, layouts in found.items() if None in layouts.values()]
    # Without the batch, what was looked up or expanded may be data: mixed, it is refused.
    doubtful = {key for key in mixed if ones.entries[key].optional}
    optional = frozenset(key for key in doubtful if ones.entries[key].constant or has_batch)
    if optional and len(optional) == len(doubtful):
        raise NotProven(optional)
    if mixed:
        raise mixing_error(capture, mixed, found, diverged=ones.not_finite())


def mixing_error(
    capture: Capture,
    mixed: list[Key],
    found: Mapping[Key, Mapping[int, Layout | None]],
    *,
    diverged: bool = False,
) -> CoupledExamples:
    """Names what lies between the last recorded output that mixes and the first that does not."""
    events = capture.events
    last = max(events.index(key) for key in mixed)
    after: list[str] = []
    for event in events[last + 1 :]:
        if isinstance(event, tuple):
            if event in found and event not in mixed:
                break
        elif event not in after:
            after.append(event)
    inside = ", ".join(f"'{name}'" for name in after[:4]) or "the code that follows it"
    return CoupledExamples(
        f"The gradient of one example's loss with respect to the output of {describe(mixed[-1])} "
        f"reaches other examples' rows, or rows that lie in no regular order. Examples are mixed in or "
        f"after {inside}, or in the loss. Use layers that treat each example alone (group or layer "
        "normalisation, routing per example) and a loss that is one value per example."
        + (" Some of these gradients are not finite: if training has diverged, that may be all." * diverged),
        code="gradient-mixes-examples",
    )
