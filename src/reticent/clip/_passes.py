"""What is done with per-unit gradients while a backward pass runs.

A `FormVisitor` sees every recorded output's gradient, turns it into forms, pulls these back to the
parameters, and hands each parameter's gradient to a consumer as soon as it is whole. Consumers:

    Clip    norms; then, once the norm of a group is known, its weighted sums. With one group this
            is book-keeping [1]: forms are kept to the end. With many, each is clipped inside the backward,
            and kept until its last parameter's last gradient has come: nothing for one layer, a part of the
            model for groups of several layers or a table that is used at both ends.
    Norms   norms only; nothing is kept.
    Sums    weighted sums, with weights known from an earlier pass; norms again, which the weights must bound.

Room: clip. May import torch, `reticent.errors`, `reticent.rules`.

Shape letters (this file): U unit, L groups.

Sources:
    [1] Bu et al. 2022, arXiv:2210.00038.
    [2] Li et al. 2021, arXiv:2110.05679 (norms, then sums, in two passes).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from reticent.clip._entries import entry_forms
from reticent.clip._entry import Entry, Key
from reticent.clip._groups import Group
from reticent.clip._held import SameRows, Scattered, adding, scattered
from reticent.clip._kept import Versions, refuse_written, versions_of
from reticent.clip._planner import Planner, Stay
from reticent.clip._pull import pull_back
from reticent.clip._sums import SumsOnDemand
from reticent.errors import UnsupportedModel
from reticent.rules import Form, Layout, combine

# The layout of one output of a recorded operation, given its gradient.
LayoutOf = Callable[[Entry, int, Tensor], Layout]

# Norms are rounded up by this share, above the rounding of a float32 backward.
_ROUND_UP = {torch.float64: 1e-13, torch.float32: 4e-6}
# Kernels that add in no fixed order may differ in a second backward: by this share of a norm; and in half
# precision, where a last digit that differs spreads through the layers below, by so much that norms of the
# first are rounded up by it.
_AGAIN = 1e-6
_HALF_AGAIN = 1e-3


class Consumer(Protocol):
    """Takes each parameter's per-unit gradients.

    `whole`: each parameter comes once, with all of its gradient; else in as many pieces as it has uses.
    """

    whole: bool

    def take(self, name: str, form: Form) -> None:
        """Per-unit gradients of one parameter."""
        ...


class FormVisitor:
    """Visits a backward pass.

    Args:
        entries: what the forward recorded.
        leaves: parameter name -> the copy that values were computed from.
        layout_of: where the units lie.
        consumer: takes the parameters' gradients.
        last: nothing that the forward recorded is needed after this pass.
        apart: parameters' memory is given back when the modules around them are done.
        waiting: is told of gradients that wait for those of the parameter's other uses.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        leaves: dict[str, Tensor],
        layout_of: LayoutOf,
        consumer: Consumer,
        *,
        last: bool,
        apart: bool = False,
        waiting: Callable[[str, Form], None] | None = None,
    ) -> None:
        self._apart, self._waiting = apart, waiting
        self._leaves, self._layout_of, self._consumer, self._last = leaves, layout_of, consumer, last
        self._forms: dict[str, list[Form]] = {}
        self._waits: dict[str, Versions] = {}
        self._taken: set[str] = set()
        self._to_come: dict[str, int] = {}  # operations that are still to pass their gradient on
        self._open: dict[Key, tuple[Entry, dict[int, Tensor]]] = {}
        uses: dict[str, list[int]] = {}
        for number, entry in enumerate(entries):
            for name in entry.roots:
                self._to_come[name] = self._to_come.get(name, 0) + 1
                uses.setdefault(name, []).append(number)
        self.uses: Mapping[str, Sequence[int]] = uses  # those that the forward recorded: the last is known

    def visit(self, entry: Entry, index: int, saved: tuple[Tensor, ...], g: Tensor) -> None:
        """See `Visitor`."""
        if len(entry.shapes) == 1:
            self._add(entry, saved, {index: g})
            return
        _, grads = self._open.setdefault(entry.key, (entry, {}))
        grads[index] = grads[index] + g if index in grads else g

    def finish(self) -> None:
        """End the pass: what was waiting for more will not get it.

        Raises:
            UnsupportedModel[sharded-use]: it needs parameters that are held apart, and have been let go.
        """
        for entry, grads in self._open.values():
            self._add(entry, (), grads)
        self._open.clear()
        for name in list(self._forms):
            self._hand_over(name)

    def _add(self, entry: Entry, saved: tuple[Tensor, ...], grads: Mapping[int, Tensor]) -> None:
        layouts = {i: self._layout_of(entry, i, g) for i, g in grads.items()}
        roots = entry.roots
        late = roots & self._taken
        if late:
            raise UnsupportedModel(
                f"The gradient of {sorted(late)} came in more pieces than the forward recorded (a reentrant "
                "checkpoint that shares a parameter with the rest of the model). Use "
                "use_reentrant=False, or method='loop'.",
                code="late-gradient",
            )
        if self._apart:
            self._require_here(roots)
        before = {name: len(self._forms.get(name, ())) for name in roots}
        for role, form in entry_forms(entry, saved, grads, layouts).items():
            pull_back(entry.values[role], form, self._leaves, self._forms)
        if self._last:
            entry.call, entry.outputs = None, ()
        for name in sorted(roots):  # in the same order in every process, whose hashes differ
            self._to_come[name] = self._to_come.get(name, 0) - 1  # below 0 if the forward did not record it
            if self._to_come[name] == 0 or not self._consumer.whole:
                self._hand_over(name)
            else:
                for form in self._forms.get(name, ())[before[name] :]:
                    self._waits[name] = (*self._waits.get(name, ()), *versions_of(form))
                    if self._waiting is not None:
                        self._waiting(name, form)

    def _require_here(self, roots: frozenset[str]) -> None:
        """Refuse to read parameters whose memory has been given back."""
        gone = sorted(
            n for n in roots if self._leaves[n].untyped_storage().nbytes() == 0 < self._leaves[n].numel()
        )
        if gone:
            raise UnsupportedModel(
                f"Parameters {gone} are used by an operation whose gradient comes when the module that holds "
                "them is done (several outputs, or a use outside that module). Shard the module around it "
                "as one unit, or train with parallel=ddp.",
                code="sharded-use",
            )

    def _hand_over(self, name: str) -> None:
        forms = self._forms.pop(name, None)
        refuse_written(name, self._waits.pop(name, ()))
        if self._consumer.whole:
            self._taken.add(name)
        if forms:
            self._consumer.take(name, combine(forms))


class GroupNorms:
    """Squared norms of each group, added up parameter by parameter.

    Args:
        groups: of parameters.
        finite_U: which units count, if their gradients are finite.
        round_up: the share by which norms are rounded up.
        same_rows: the processes that have the rest of these units' gradients. Each group's norm is then asked
            for once it is whole, in the same order in all of them.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        finite_U: Tensor,
        round_up: float,
        same_rows: SameRows | None = None,
    ) -> None:
        self._same_rows = same_rows
        self._parts = frozenset() if same_rows is None else same_rows.parts
        self._of_all: dict[int, Tensor] = {}  # group -> squares over all processes
        self.groups = groups
        self.group_of = {name: i for i, group in enumerate(groups) for name in group.names}
        self._finite_U, self._round_up, self._spare = finite_U, 1 + round_up, 1.0
        self._square_LU = torch.zeros(len(groups), len(finite_U), dtype=torch.float64, device=finite_U.device)
        self._of_parts_LU = torch.zeros_like(self._square_LU)
        # The rows of both, taken once: they are added to for every parameter.
        self._square_rows, self._part_rows = ([*t] for t in (self._square_LU, self._of_parts_LU))

    def anew(self) -> "GroupNorms":
        """The same groups and units, without norms yet; of this process alone."""
        return GroupNorms(self.groups, self._finite_U, self._round_up - 1)

    def expect_other_digits(self) -> None:
        """Sums come from another backward in half precision: round norms up more; those of `anew` not."""
        self._spare = 1 + _HALF_AGAIN

    def add(self, name: str, square_U: Tensor) -> None:
        """Add one parameter's squared norms."""
        group = self.group_of[name]
        assert group not in self._of_all, "other processes have been told of the group's norm"
        (self._part_rows if name in self._parts else self._square_rows)[group].add_(square_U)

    def _squares(self, group: int) -> Tensor:
        if self._same_rows is None:
            return self._square_LU[group]
        if group not in self._of_all:
            whole_U = torch.where(self._finite_U, self._square_LU[group], math.inf)
            self._of_all[group] = self._same_rows.squares(group, self._of_parts_LU[group], whole_U)
        return self._of_all[group]

    def norms(self, group: int) -> Tensor:
        """(U,), rounded up; infinite for a unit that counts as zero in this group."""
        norm_U = self._squares(group).sqrt() * (self._round_up * self._spare)
        return torch.where(self._finite_U & torch.isfinite(norm_U), norm_U, math.inf)

    def weights(self, group: int) -> tuple[Tensor, Tensor | None]:
        """(U,) weights, zero for units that are left out, and which units stay (None: all)."""
        norm_U = self.norms(group)
        keep_U = torch.isfinite(norm_U)
        weight_U = torch.where(keep_U, self.groups[group].weights(norm_U), 0.0)
        return weight_U, None if bool(keep_U.all()) else keep_U

    def all_norms(self) -> Tensor:
        """(U, L)."""
        return torch.stack([self.norms(i) for i in range(len(self.groups))], 1)


class Norms:
    """Consumer: norms only."""

    whole = True

    def __init__(self, norms: GroupNorms, planner: Planner, params: Mapping[str, Tensor]) -> None:
        self._norms, self._planner, self._params = norms, planner, params

    def take(self, name: str, form: Form) -> None:
        """See `Consumer`."""
        self._norms.add(name, self._planner.norm(name, form, like=self._params[name]))


class Sums:
    """Consumer: weighted sums, from the norms of an earlier pass.

    What is recomputed in a backward may come out otherwise the second time (a checkpointed block that draws
    from a generator of its own), and then the weights would bound other gradients than those that are added.
    So norms are computed again, of what is added.
    """

    whole = True

    def __init__(
        self,
        norms: GroupNorms,
        total: Mapping[str, Tensor] | Scattered,
        planner: Planner,
        params: Mapping[str, Tensor],
    ) -> None:
        self._norms, self._total, self._planner, self._params = norms, total, planner, params
        self.has_added = False
        self._weights = [norms.weights(i) for i in range(len(norms.groups))]
        self._added = norms.anew()

    def take(self, name: str, form: Form) -> None:
        """See `Consumer`."""
        self.has_added = True
        self._added.add(name, self._planner.norm(name, form, like=self._params[name]))
        _add(self._total, name, form, *self._weights[self._norms.group_of[name]])

    def finish(self) -> None:
        """The pass is over.

        Raises:
            UnsupportedModel[unstable-forward]: a weight does not bound the gradient that it was put on.
        """
        for i, (group, (weight_U, keep_U)) in enumerate(zip(self._norms.groups, self._weights, strict=True)):
            moved_U = weight_U * self._added.norms(i)
            if keep_U is not None:
                moved_U = torch.where(keep_U, moved_U, 0.0)
            if not bool((moved_U <= group.max_norm * (1 + _AGAIN)).all()):
                raise UnsupportedModel(
                    "The second of two backwards gave an example a longer gradient than the first: something "
                    "that is recomputed in the backward (activation checkpointing) came out otherwise, by a "
                    "draw from a generator of its own, say, or an operation's backward is not repeatable. "
                    "Use method='book-keeping' (leave out low_memory), or make both repeatable.",
                    code="unstable-forward",
                )


class Clip:
    """Consumer: norms, and each group's weighted sums as soon as its norm is whole.

    Args:
        norms: of the groups.
        total: name -> sum to add to; looked up when something is added. A scattered one is added to for
            every parameter, once, whether it had a gradient or not.
        planner: chooses how each parameter's norm is computed.
        params: name -> parameter.
    """

    whole = True

    def __init__(
        self,
        norms: GroupNorms,
        total: Mapping[str, Tensor] | Scattered,
        planner: Planner,
        params: Mapping[str, Tensor],
    ) -> None:
        self._norms, self._total, self._planner, self._params = norms, total, planner, params
        self._stays: list[Stay] = ["pass" if len(norms.groups) == 1 else "group" for _ in norms.groups]
        self.has_added = False
        self._too_much = False  # for the budget: nothing is kept or added, the pass goes on to see how much
        self._held: list[dict[str, tuple[Form, Versions]]] = [{} for _ in norms.groups]
        self._released = [False for _ in norms.groups]
        self._missing: list[set[str] | None] = [None for _ in norms.groups]

    def expect(self, uses: Mapping[str, Sequence[int]]) -> None:
        """Where parameters are used: their last gradient is known when it comes.

        A group with others ends with the pass; one whose parameters all come with one gradient keeps nothing.
        """
        for i, group in enumerate(self._norms.groups):
            if all(name in uses for name in group.names):
                self._missing[i] = set(group.names)
                together = all(uses[name] == uses[group.names[0]] for name in group.names)
                if together and self._stays[i] == "group":
                    self._stays[i] = "operation"

    def take(self, name: str, form: Form) -> None:
        """See `Consumer`."""
        group = self._norms.group_of[name]
        settled = self._planner.settle(name, form, stays=self._stays[group], like=self._params[name])
        if settled is None:
            self._too_much = True
            for forms in self._held:
                forms.clear()
        else:
            square_U, held = settled
            self._held[group][name] = held, versions_of(held)
            self._norms.add(name, square_U)
        missing = self._missing[group]
        if missing is not None:
            missing.discard(name)
            if not missing:
                self._release(group)

    def finish(self) -> None:
        """Clip and add the groups that are still held."""
        for group in range(len(self._held)):
            if not self._released[group]:
                self._release(group)

    def _release(self, group: int) -> None:
        self._released[group] = True
        if not self._too_much:
            self._clip_and_add(group)
        if self._stays[group] == "group":
            for name in self._norms.groups[group].names:
                self._planner.let_go(name)

    def _clip_and_add(self, group: int) -> None:
        held, all_asked = self._held[group], scattered(self._total)
        if not held and not all_asked:
            return
        for name, (_, versions) in held.items():
            refuse_written(name, versions)
        weight_U, keep_U = self._norms.weights(group)
        self.has_added = True
        for name in self._norms.groups[group].names:
            form, _ = held.pop(name, (None, ()))
            if form is not None or all_asked:
                _add(self._total, name, form, weight_U, keep_U)


def _add(
    total: Mapping[str, Tensor] | Scattered,
    name: str,
    form: Form | None,
    weight_U: Tensor,
    keep_U: Tensor | None,
) -> None:
    """Add one parameter's weighted sum; `form` None adds nothing, where every parameter is asked for."""
    if form is not None and isinstance(total, SumsOnDemand) and total.put_first(name, form, weight_U, keep_U):
        return
    with adding(total, name) as into:
        if form is not None:
            form.add_weighted(weight_U, keep_U, into)


def ready(groups: Sequence[Group], entries: Sequence[Entry]) -> dict[str, int]:
    """Parameter -> when a backward can clip its group; it comes to the forward's last entry first.

    It is the number of the group's first entry; below 0 for groups that are clipped when the pass is done.
    """
    first: dict[str, int] = {}
    for number, entry in enumerate(entries):
        for name in entry.roots:
            first.setdefault(name, number)
    found: dict[str, int] = {}
    for g, group in enumerate(groups):
        sure = first.keys() >= set(group.names)
        found |= dict.fromkeys(group.names, min(first[n] for n in group.names) if sure else -1 - g)
    return found


def round_up(dtypes: set[torch.dtype]) -> float:
    """The share by which norms of sums in these dtypes are rounded up."""
    return max(_ROUND_UP[d] for d in dtypes)
