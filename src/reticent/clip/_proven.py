"""Which rows belong to which unit at a meeting: proofs, kept and used again.

Room: clip. May import torch, `reticent.rules`, `reticent.errors`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch

from reticent.clip._capture import Capture
from reticent.clip._entry import Entry, Key, describe
from reticent.errors import CoupledExamples
from reticent.rules import Layout

# Proven layouts: meeting -> entries of one unit along the axis -> layout; 0: however many there are.
Proven = dict[Key, dict[int, Layout]]


_FIRST_AGAIN: Final = 16


def due_again(times: int) -> bool:
    """Whether what was used so many times without a proof of its own is proven anew: at 16, 32, 64, ...

    What mixes examples only in some batches, or only later in training, may have been no part of the first
    proof.
    """
    return times >= _FIRST_AGAIN and times & (times - 1) == 0


class NotProven(Exception):
    """An optional meeting is none, or a meeting appeared that has not been proven: run again."""

    def __init__(self, not_meetings: frozenset[Key] = frozenset()) -> None:
        super().__init__()
        self.not_meetings = not_meetings


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
        here = replace(layout, num_units=units)
        fits = here.axis < len(shape) and here.fits(shape[here.axis])
        if fits and size in (0, shape[here.axis] // units):
            return here
    raise NotProven


def mixing_error(
    capture: Capture, mixed: list[Key], found: Mapping[Key, Mapping[int, Layout | None]]
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
        "normalisation, routing per example) and a loss that is one value per example.",
        code="gradient-mixes-examples",
    )
