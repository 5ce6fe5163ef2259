"""The private step: where sampling, clipping, noise and the ledger meet.

Room: train. May import torch, `reticent.{plan,clip,noise,account}` and the floors below.

Sources:
    [1] Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
    [2] Andrew et al. 2019, arXiv:1905.03871 (adaptive clipping).
"""

import secrets
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reticent.account.ledger import Ledger
from reticent.bounded import BoundedSum
from reticent.clip import ClipEngine, CompiledEngine, varied_rows
from reticent.clipping import StepClipping, sensitivity
from reticent.dist import ALONE, Ranks, RanksLedger, together
from reticent.errors import ConfigError, StepError
from reticent.noise import CipherNoise, NoiseSource
from reticent.plan import LogicalBatch, Plan, PlannedStep
from reticent.records import EpsilonReport, NeighbouringRelation

from . import _rows
from ._adapt import ClipNorms
from ._admit import refuse_foreign, refuse_late, refuse_spent
from ._begin import check_low_memory, check_noise, check_physical_batch_size, require_alike, require_same_rows
from ._guards import Watch, refuse_pipeline, refuse_shards
from ._ledger import check_ledger, ledger_epsilon, new_ledger
from ._open_step import LossPerExample, OpenStep
from ._rows import Rows, Transform
from ._seeds import mix_seed
from ._sums import Sums, destroy, norm_figures

DEFAULT_PHYSICAL_BATCH_SIZE: Final = 256
_NUM_LOOKED_AT: Final = 16
_NUM_CHECKED_ROWS: Final = 4


class Engine(Protocol):
    """What turns per-example losses into a bounded sum; `reticent.clip.ClipEngine` is ours."""

    def clipped_sum(
        self,
        losses: Callable[..., Tensor],
        batch: Any,
        *,
        num_units: int | None = None,
        out: Mapping[str, Tensor] | None = None,
        clipping: StepClipping | None = None,
    ) -> BoundedSum:
        """Add the batch's clipped gradients into `out`, and say how far one unit moves them.

        `clipping`, given only where norms adapt, takes the place of the engine's own for this call.
        """
        ...

    def check(self, losses: Callable[..., Tensor], batch: Any) -> None:
        """Refuse a model or a loss for which one unit's influence is not bounded exactly."""
        ...


class PrivateStep:
    """Differentially private optimizer steps for a loop that stays yours [1, Alg. 1].

        private = PrivateStep(model, optimizer, plan=plan, ledger="runs/a")
        for batch in plan.batches(train_set):
            with private.step(batch) as step:
                for chunk in step.chunks():
                    step.backward(loss_per_example, chunk)

    Leaving the block without an exception, in this order: the ledger's entry becomes durable; noise is
    added once to the sum over all chunks (and, with adaptive clipping [2], to the count of units below the
    norm, from which the next step's norm follows); the sum is divided by the plan's expected batch size, a
    public constant; every trainable parameter's `.grad` is set; the optimizer steps; gradients and raw sums
    are cleared. The model, the optimizer and the data set are never wrapped, and nothing stays on them.

    Args:
        model: any `nn.Module` the engine accepts.
        optimizer: any `torch.optim` optimizer that steps without a closure, over exactly the model's
            trainable parameters.
        plan: what will run; its batches are the only ones accepted, in order.
        ledger: a ledger, or where to create one (a folder, or a file ending in `.jsonl`). An existing
            file is refused: to go on with it, open it with `Ledger.open` and record the resume.
        physical_batch_size: rows that go through the model at once. Changes memory and time, not the
            result (to rounding, and to the order in which random layers and transforms draw).
        noise: where noise comes from; by default a cipher with a fresh key from the operating system.
        seed: of the transform's generator. Public, and unrelated to noise and sampling. Where the number of
            examples is secret (add-or-remove-one), a secret of this step's own comes with it.
        transform: called as `transform(rows, generator)` on each chunk, e.g. to augment it; each row by
            itself (checked on a few rows before the first step).
        check_batch: rows for the engine's self-check. Give public ones if you have them; by default four
            rows of the data set are used, of 16 spread over it those that differ most, before the first
            step only, and an error from it names parameters and no values.
        compile: clip in a compiled graph of one physical batch, `reticent.clip.CompiledEngine`: smaller
            chunks are padded, so that no batch compiles again. Worth it in runs of many steps.
        low_memory: clip by two backwards, norms first and sums second, with nothing kept between: about half
            again as long, and the same sums to rounding; `ClipEngine(method="ghost")`.
        engine: clips gradients; by default one with the plan's clipping, compiled or not.
        show_norms: after each step, say in `last_not_private` how long the units' gradients were. These
            figures are NOT private.
        ranks: the processes that take every step together, e.g. `reticent.dist.Replicas()`; each makes a
            PrivateStep like this one and calls `step` alike. One of them draws each batch and keeps the
            ledger. A process group that is not named here is refused.

    Guarantee:
        After the steps that its ledger holds, everything computed from the model's parameters is
        (epsilon, delta)-differentially private with the ledger's epsilon, under the plan's neighbouring
        relation, if batches come from the plan's own stream and nothing else of the data is used.
        | case | what happens |
        |---|---|
        | empty batch | a step of pure noise, entered in the ledger |
        | exception inside the block | nothing released, nothing charged; the batch may be tried again |
        | crash after the ledger's entry | the step is spent, even if its update was lost |
        | adaptive clipping | gradient and count are one release, entered once; also on an empty batch |
        | several ranks | each unit on one of them, the noise of one process in total, one ledger |
        | exception on one rank | every rank's step fails; nothing released, nothing charged |
        | ledger full | `BudgetExhausted`, before any row is read |

    Raises:
        ConfigError[no-noise]: the plan's noise multiplier is 0.
        ConfigError[several-ranks]: one of several processes without `ranks`, a model spread over them, or
            `show_norms` with them.
        ConfigError[ranks-differ]: the ranks have different plans, models or settings; at the first step,
            different data.
        ConfigError[physical-batch-size]: not a positive integer.
        ConfigError[no-compiler]: `compile`, and there is no compiler for the model's device.
        ConfigError[engine-compile]: both `compile` and an engine.
        ConfigError[low-memory]: `low_memory` with `compile`, an engine, per-layer clipping or shards.
        ConfigError[noise-source, noise-bound]: the noise cannot be drawn, or its size is not a number.
        ConfigError[noise-rank]: reproducible noise of another rank.
        ConfigError[optimizer-type, optimizer-closure, optimizer-parameters, nothing-to-train,
            optimizer-foreach]: see the codes.
        LedgerError[ledger-exists]: `ledger` is the path of an existing file.
        LedgerError[ledger-plan]: the ledger was made for another plan, or would claim privacy for
            reproducible noise.

    Sources:
        [1] Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
        [2] Andrew et al. 2019, arXiv:1905.03871.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        plan: Plan,
        ledger: Ledger | RanksLedger | Path | str,
        physical_batch_size: int = DEFAULT_PHYSICAL_BATCH_SIZE,
        noise: NoiseSource | None = None,
        seed: int = 0,
        transform: Transform | None = None,
        check_batch: Any = None,
        compile: bool = False,
        low_memory: bool = False,
        engine: Engine | None = None,
        show_norms: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks: Final = ranks
        source = CipherNoise.fresh() if noise is None else noise
        with together(self.ranks):  # an error here must not leave other ranks waiting for this one
            check_physical_batch_size(physical_batch_size)
            if compile and engine is not None:
                raise ConfigError(
                    "compile makes an engine of its own, and one was given: leave out either.",
                    code="engine-compile",
                )
            if low_memory:
                check_low_memory(
                    plan.clipping, compile=compile, own_engine=engine is not None, shards=ranks.shards
                )
            check_noise(source, plan, ranks)
            refuse_pipeline(model)
            refuse_shards(model, ranks, show_norms=show_norms, other_engine=compile or engine is not None)
            if ranks.size > 1 and isinstance(ledger, Ledger):
                raise ConfigError(
                    "Several ranks share one ledger: give its path, or a reticent.dist.RanksLedger.",
                    code="several-ranks",
                )
            ranks.settle(model)
            self._watch = Watch(model, optimizer)
        self.model: Final = model
        self.optimizer: Final = optimizer
        self.plan: Final = plan
        self._physical_batch_size = physical_batch_size
        self._noise: Final = source
        require_alike(
            ranks,
            model,
            optimizer,
            plan,
            seed=seed,
            physical_batch_size=physical_batch_size,
            check_batch=check_batch,
        )
        # One example less moves the others to other places: a public seed would give them other draws.
        moves = plan.relation is NeighbouringRelation.ADD_OR_REMOVE and source.private
        self._salt: Final[tuple[int, ...]] = (ranks.tell(secrets.randbits(63)),) if moves else ()
        self._norms: Final = ClipNorms(
            plan.clipping, {n: p.numel() for n, p in self._watch.trainable.items()}
        )
        with together(self.ranks):
            self._holding: Final = ranks.hold(model)
            self._engine: Final[Engine] = self._make_engine(compile, low_memory) if engine is None else engine
        self._show_norms: Final = show_norms
        self.last_not_private: dict[str, Any] | None = None
        self._seed, self._transform, self._check_batch = seed, transform, check_batch
        self._checked = self._compared = self._is_open = False
        self.ledger: Final[Ledger | RanksLedger] = (
            self._create_ledger(Path(ledger)) if isinstance(ledger, Path | str) else ledger
        )
        if self.ledger is not ledger:
            weakref.finalize(self, self.ledger.close)
        shown = ("norms",) if show_norms else ()
        with together(self.ranks):
            check_ledger(self.ledger, plan, reproducible=not self._noise.private, not_private=shown)
        self.ranks.begin_alike(self.model)
        if self.ledger.num_steps == 0:  # else the norms are those of a checkpoint, which only the caller has
            self._norms.restore(self._norms.values)

    def __repr__(self) -> str:
        return f"PrivateStep({type(self.model).__name__}, step {self.num_steps} of {self.plan.num_steps})"

    @property
    def physical_batch_size(self) -> int:
        """Rows that go through the model at once, from the next step on; a compiled graph has no more."""
        return self._physical_batch_size

    @physical_batch_size.setter
    def physical_batch_size(self, size: int) -> None:
        check_physical_batch_size(size)
        self._physical_batch_size = size
        if isinstance(self._engine, CompiledEngine):  # it would pad smaller chunks to its own size
            self._engine.physical_batch_size = min(size, self._engine.physical_batch_size)

    @property
    def clip_norms(self) -> tuple[float, ...]:
        """The clipping norms of the next step, if they adapt, else (). Noised: they may be published."""
        return self._norms.values

    def restore_clip_norms(self, norms: Sequence[float]) -> None:
        """Go on with the clipping norms of a checkpoint, `clip_norms` as it was then; () if none adapt.

        Raises:
            CheckpointError[checkpoint-mismatch]: another number of norms, or some outside the plan's limits.
        """
        self._norms.restore(norms)

    @property
    def num_steps(self) -> int:
        """Steps spent so far, lost ones included; the number of the batch that comes next."""
        return self.ledger.num_steps

    @property
    def head(self) -> str | None:
        """Hash of the ledger's last entry."""
        return self.ledger.head

    def close(self) -> None:
        """Let go of the ledger's file, so that another process may open it; no step can follow."""
        self.ledger.close()

    def epsilon(self) -> EpsilonReport:
        """The privacy spent by the steps in the ledger; infinite if the run is reproducible."""
        return ledger_epsilon(self.ledger)

    @contextmanager
    def step(self, batch: LogicalBatch) -> Iterator[OpenStep]:
        """Open one private step on a logical batch; leaving the block takes it.

        Args:
            batch: the next batch of `plan.batches(...)`.

        Raises:
            StepError[step-open]: another step of this object is still open.
            StepError[foreign-batch]: not a batch of this plan's sampler, or with a row in it twice.
            StepError[privacy-unit]: the data set's items are not the units that the plan names.
            StepError[reproducible-batch]: its draw can be repeated, and the ledger claims privacy.
            StepError[batch-order]: not the batch whose turn it is; or, at the end of the block, no longer.
            StepError[clip-norms]: the norms of adaptive clipping were not restored after a resume.
            StepError[parameters-changed, raw-gradient]: someone else touched what this object trains.
            BudgetExhausted[budget-exhausted]: the ledger holds every step of the plan.
        """
        with together(self.ranks):
            self.ranks.settle(self.model)
            self._admit(batch)
        if self.ranks.size > 1:  # one draw, the leader's, for all of them
            self.ranks.agree("the size of the data set", _rows.num_rows(batch.dataset))
            if not self._compared:
                require_same_rows(self.ranks, batch.dataset)
                self._compared = True
            batch = replace(batch, indices=self.ranks.tell_indices(batch.indices))
        opened = OpenStep(self, batch)
        self._is_open = True
        try:
            with together(self.ranks, passing=True), self._secret_draws(batch.step):
                yield opened
                opened._require_complete()
                refuse_late(batch, num_steps=self.num_steps)
                self._watch.check_parameters()
                self._watch.check_no_gradients()
            self._release(opened._close(), self.plan.at(batch.step))
        finally:
            self._is_open = False
            destroy(opened._close())

    @contextmanager
    def _secret_draws(self, step: int) -> Iterator[None]:
        """With a salt, random layers draw by it, and torch's generator then goes on as it was."""
        if not self._salt:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(mix_seed(self._seed, "layers", step, self.ranks.data_rank, *self._salt))
            yield

    def _admit(self, batch: LogicalBatch) -> None:
        if self._is_open:
            raise StepError(
                "A step is open already: leave its block before opening the next.", code="step-open"
            )
        refuse_spent(self.plan, self.num_steps)
        self._norms.require_known(self.num_steps)
        refuse_foreign(batch, self.plan, num_steps=self.num_steps, reproducible=self.ledger.reproducible)
        self._watch.check_parameters()
        self._watch.check_no_gradients()

    def _rows(self, batch: LogicalBatch, indices: np.ndarray, start: int) -> Rows:
        rows = _rows.move(_rows.fetch(batch.dataset, indices), self._device())
        if self._transform is None:
            return rows
        generator = torch.Generator().manual_seed(
            mix_seed(self._seed, "transform", batch.step, start, *self._salt)
        )
        return _rows.augment(rows, self._transform, generator)

    def _device(self) -> torch.device:
        return next(iter(self._watch.trainable.values())).device

    def _check_once(self, loss_per_example: LossPerExample, batch: LogicalBatch) -> None:
        """Before the first step: refuse a transform or a loss that couples examples."""
        if self._checked:
            return
        rows = self._check_batch
        if rows is None:
            last = _rows.num_rows(batch.dataset) - 1
            spread = np.unique(np.linspace(0, last, _NUM_LOOKED_AT).astype(np.int64))
            found = _rows.move(_rows.fetch(batch.dataset, spread), self._device())
            rows = varied_rows(found, at_most=_NUM_CHECKED_ROWS)
        if self._transform is not None:
            _rows.refuse_mixing(rows, self._transform, seed=self._seed)
            rows = _rows.augment(rows, self._transform, torch.Generator().manual_seed(self._seed))
        self._engine.check(self._losses(loss_per_example), rows)
        self._checked = True

    def _losses(self, loss_per_example: LossPerExample) -> Callable[[Rows], Tensor]:
        """The loss, on a dict of its own each time: it may take items out."""
        return lambda given: loss_per_example(self.model, dict(given) if isinstance(given, dict) else given)

    def _add(self, loss_per_example: LossPerExample, chunk: Rows, sums: Sums, *, counts: bool) -> None:
        losses = self._losses(loss_per_example)
        now = self._norms.now()
        options: dict[str, Any] = {"clipping": now} if self._norms.adapt else {}
        if not counts:
            options["counts"] = False
        added = self._engine.clipped_sum(losses, chunk, out=sums.total, **options)
        if added.bound != sensitivity(now) or added.total.keys() != sums.total.keys():
            raise StepError(
                "The engine's sum is not the one the plan asked for (its bound or its parameters differ). "
                "Give PrivateStep an engine made for this model and for plan.clipping.",
                code="engine-mismatch",
            )
        if self._norms.adapt and counts:
            sums.count.add_(self._norms.count(added, _rows.count(chunk)))
        if self._show_norms:
            sums.norms.append(added.norms.detach().double().cpu().clone())
            sums.clipped.append(self._norms.clipped(added))

    def _release(self, sums: Sums, plan: PlannedStep) -> None:
        # Every chunk's sum carried this very bound; an empty batch has had none. Sums that nothing was added
        # to are zeros, and noised like the others.
        bounded = BoundedSum(total=sums.total, bound=sensitivity(self._norms.now()), norms=torch.empty(0))
        self.last_not_private = None
        noise = plan.gradient_noise_multiplier
        try:
            self.ledger.append_step(plan.mechanism)  # durable before anything can depend on it
            # Gradient and count are one release of one sample: the line above speaks of both.
            noised = self.ranks.add_noise(bounded, noise_multiplier=noise, source=self._noise)
            if self._norms.adapt:
                self._norms.release(sums.count, plan, self._noise, self.ranks)
            if self._show_norms:
                self.last_not_private = norm_figures(sums, noised, bounded.bound, noise)
        finally:
            destroy(sums)
        try:
            for name, p in self._watch.trainable.items():
                p.grad = self._holding.gradient(p, noised[name] / plan.expected_batch_size)
            self.optimizer.step()
        finally:
            for p in self._watch.trainable.values():
                p.grad = None

    def _make_engine(self, compiled: bool, low_memory: bool) -> Engine:
        now = self._norms.now()
        if compiled:
            return CompiledEngine(self.model, clipping=now, physical_batch_size=self._physical_batch_size)
        method = "ghost" if low_memory else "book-keeping"
        return ClipEngine(self.model, clipping=now, held=self._holding.held, method=method)

    def _create_ledger(self, path: Path) -> Ledger | RanksLedger:
        shown = ("norms",) if self._show_norms else ()

        def new() -> Ledger:
            return new_ledger(path, self.plan, reproducible=not self._noise.private, not_private=shown)

        if self.ranks.size == 1:
            return new()
        return RanksLedger(self.ranks, self.ranks.first(new), planned=self.plan.segments())
