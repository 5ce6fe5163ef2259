"""The compiled engine: the same clipped sums as `ClipEngine`, as one compiled graph.

Room: clip. May import torch, `reticent.rules`, `reticent.bounded`, `reticent.clipping`, `reticent.errors`.

Shape letters (this file): U units of the physical batch, padding included; R their rows; L groups.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from reticent.bounded import BoundedSum
from reticent.clip._agree import compare, lowered, norms_of, shorts
from reticent.clip._batch import num_rows, rows
from reticent.clip._engine import ClipEngine, Losses, _cuda_devices
from reticent.clip._groups import Group, resolve
from reticent.clip._guards import checked_units
from reticent.clip._held import InPlace
from reticent.clip._params import sizes, trainable
from reticent.clip._precision import full_float32
from reticent.clip._program import Program, generator_states, max_norms, run_program, set_states, units_at
from reticent.clip._programs import fingerprint
from reticent.clip._proven import due_again
from reticent.clip._refuse import refuse_unsupported
from reticent.clip._sums import SumsOnDemand
from reticent.clip._trace import Setting, prove, state_of, trace_sum, without_autocast
from reticent.clipping import StepClipping, sensitivity
from reticent.errors import ConfigError
from reticent.rules import BUILTIN, OpRule


class CompiledEngine:
    """Clips and sums like `ClipEngine`, in a graph compiled for one physical batch size.

    The first chunk of a kind (shapes and types of its rows, the model's mode, autocast, ...) runs eagerly
    too: what is refused is refused there. Then forward, backward, norms and sums are traced without values,
    it is proven on the traced program which entries belong to which unit, and the graph is compiled, which
    takes a minute or more for a Transformer. Parameters and buffers are inputs of the graph, read in every
    run.

    No graph is used before its sum and norms were compared with the eager ones (but for those below), on such
    units of a chunk as are finite and not in doubt, and clipped to norms at which half of them or more are.
    Until that was done, which is tried on the first, second, fourth, eighth ... chunk, chunks run eagerly:
    for ever, where the gradients of some group of parameters never tell (they are zero, or rounding);
    `num_eager` shows it. Where the graph draws random numbers (dropout), the compiler's draws are not torch's
    from the same state, so it is the traced graph that is compared, not yet compiled, from the same state: an
    error of the compiler itself would pass. On other devices than CPUs graphs that draw are not compared:
    what draws there may be chosen otherwise without values.

    Chunks smaller than the physical batch are padded with copies of their first row, which count nowhere;
    larger ones run in pieces. If a unit is not finite, the same graph runs again, with the same random
    draws, without it; a unit whose norm float32 cannot tell to 1e-4, or that is finite in some groups of
    parameters only, is computed alone by `ClipEngine`. So no unit decides how another is computed. The
    16th, 32nd, 64th, ... chunk of a graph runs eagerly and is proven anew. (Where a kind of chunk runs
    eagerly, for that reason, because there are more than `max_graphs` or because no chunk so far proved
    enough, rounding differs: in half precision by up to some percent of a unit's share.)

    Not every change is seen: what a list, dict or other object holds is fixed at the first call, if `losses`
    closes over it or a module has it as an attribute (a config). Pass another object, or make a new engine,
    to change it. How long a call takes, and `num_eager`, the number of times the eager engine ran, depend on
    private data.

    Args:
        model: any module that `ClipEngine` takes and whose Python decides nothing by values of tensors.
        max_norm: short for `clipping=FlatClipping(max_norm=...)`.
        clipping: how one unit's influence is bounded. Its norms are inputs of the graph, so that another
            one for one call only compiles again if groups or kind differ.
        physical_batch_size: rows that run at once; a chunk has at most so many, or runs in pieces.
        max_graphs: chunks of further kinds (of other lengths, say) run eagerly, with one RuntimeWarning.
        rules: operation -> rule; see `reticent.rules`.

    Raises:
        ConfigError[physical-batch-size, max-graphs]: not a positive integer.
        ConfigError[no-compiler]: there is no compiler for the model's device.
        ConfigError, UnsupportedModel: as `ClipEngine`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_norm: float | None = None,
        clipping: StepClipping | None = None,
        physical_batch_size: int,
        max_graphs: int = 8,
        rules: Mapping[Callable[..., Any], OpRule] = BUILTIN,
    ) -> None:
        _require_positive("physical_batch_size", physical_batch_size, code="physical-batch-size")
        _require_positive("max_graphs", max_graphs, code="max-graphs")
        self._eager = ClipEngine(model, max_norm=max_norm, clipping=clipping, rules=rules)
        _require_compiler(model)
        self.clipping: StepClipping = self._eager.clipping
        self._physical_batch_size = physical_batch_size
        self.num_eager: int = 0
        self._model = model
        self._max_graphs = max_graphs
        self._programs: dict[Any, Program] = {}
        self._unproven: dict[Any, int] = {}  # kind of chunks -> how many came
        self._uncompared: dict[Any, int] = {}  # the same, of kinds that have a graph
        self._warned = False
        self._times: Counter[Any] = Counter()

    @property
    def physical_batch_size(self) -> int:
        """Rows that run at once. Set to another number, it lets go of the graphs, which are compiled anew."""
        return self._physical_batch_size

    @physical_batch_size.setter
    def physical_batch_size(self, size: int) -> None:
        _require_positive("physical_batch_size", size, code="physical-batch-size")
        if size != self._physical_batch_size:
            self._physical_batch_size = size
            for kept in (self._programs, self._unproven, self._uncompared, self._times):
                kept.clear()

    def clipped_sum(
        self,
        losses: Losses,
        batch: Any,
        *,
        num_units: int | None = None,
        out: Mapping[str, Tensor] | None = None,
        clipping: StepClipping | None = None,
    ) -> BoundedSum:
        """Scale each unit's gradient down as `clipping` says, then add them.

        Args:
            losses: runs the model and returns losses, shape (R,); see `ClipEngine.clipped_sum`. It must
                take its rows from `batch` alone.
            batch: a tree of tensors, example axis first. R may be 0.
            num_units: U, if a unit has more than one row; None: every loss is a unit.
            out: name -> tensor to add to, from an earlier call on other units of the same sum. If this
                raises, it may hold a part of this call's units, and must be thrown away.
            clipping: in place of the engine's, for this call.

        Returns:
            As `ClipEngine.clipped_sum`; norms may be larger by 5e-5 of themselves.

        Guarantee:
            As `ClipEngine.clipped_sum`: adding or removing one unit moves `total` by at most `bound`.
            Padding rows add nothing, whatever they hold.

        Raises:
            ConfigError[compile-needs-batch]: `batch` is None.
            ConfigError[physical-batch-size]: a unit has more rows than the physical batch.
            ConfigError[no-compiler]: the compiler failed.
            UnsupportedModel[compile-data-dependent], [compile-side-effect], [compile-unstable]: the
                model is not one graph.
            UnsupportedModel[compile-self-check]: the compiled graph does not give the eager sum.
            ConfigError, CoupledExamples, UnsupportedModel: as `ClipEngine.clipped_sum`.
        """
        if batch is None:
            raise ConfigError(
                "CompiledEngine needs `batch`: rows that the losses close over would be fixed in the graph.",
                code="compile-needs-batch",
            )
        refuse_unsupported(self._model)
        params = trainable(InPlace(self._model))
        clipping = self.clipping if clipping is None else clipping
        groups = resolve(clipping, sizes(params))
        size = num_rows(batch)
        total = SumsOnDemand(params) if out is None else out  # never scattered
        units = size if num_units is None or size == 0 else checked_units(size, num_units)
        k = size // max(units, 1)
        at_once = self.physical_batch_size // max(k, 1)
        if at_once == 0:
            raise ConfigError(
                f"A unit has {k} rows and physical_batch_size is {self.physical_batch_size}: a unit must fit "
                "into one physical batch.",
                code="physical-batch-size",
            )
        call = _Call(losses=losses, clipping=clipping, groups=groups, one_loss=num_units is None, k=max(k, 1))
        norms = [torch.zeros(0, len(groups), dtype=torch.float64)]
        for start in range(0, units, at_once):
            part = rows(batch, start * k, min(start + at_once, units) * k)
            norms.append(self._add(call, part, at_once, total))
        total = total if out is not None else {name: total[name] for name in params}
        norm_UL = torch.cat([n.to(norms[-1].device) for n in norms])
        several = len(groups) > 1
        return BoundedSum(
            total=total,
            bound=sensitivity(clipping),
            norms=torch.linalg.vector_norm(norm_UL, dim=1) if several else norm_UL[:, 0],
            group_norms=norm_UL if several else None,
        )

    def check(self, losses: Losses, batch: Any, *, num_units: int | None = None, max_units: int = 4) -> None:
        """Compare a few units alone with the same units in a batch; see `ClipEngine.check`."""
        self._eager.check(losses, batch, num_units=num_units, max_units=max_units)

    def _add(self, call: "_Call", part: Any, at_once: int, total: Mapping[str, Tensor]) -> Tensor:
        """Add one physical batch to `total`; its units' norms, one for each group."""
        leaves, spec = tree_flatten(part)
        seen, alive = fingerprint(self._model, call.losses, leaves)
        kinds = tuple((group.names, group.stability) for group in call.groups)
        key = (seen, spec, call.k, at_once, call.one_loss, kinds)
        units = num_rows(part) // call.k
        row_tensors = _padded(leaves, at_once * call.k)
        known, eager, drawn = key in self._programs, None, []
        full = not known and len(self._programs) >= self._max_graphs
        if full:
            self._warn_of_more_kinds()
        if key in self._uncompared or not (known or full):
            setting = Setting(
                engine=self._eager,
                model=self._model,
                losses=call.losses,
                spec=spec,
                others={i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)},
                num_units=at_once,
                one_loss=call.one_loss,
                groups=call.groups,
            )
            drawn = generator_states(next(iter(trainable(InPlace(self._model)).values())).device)
            eager = self._run_eager_to_compare(call, part)
            if not known:
                self._compile(key, setting, row_tensors, units, tuple(alive))
            if key in self._uncompared:
                self._compare(key, call, setting, part, row_tensors, eager)
        usable = key in self._programs and key not in self._uncompared
        again = False
        if usable and units > 1:
            self._times[key] += 1
            again = due_again(self._times[key])
        if again:
            self._eager.proofs.forget()
        if usable and not again:
            set_states(drawn)  # as if the eager engine had not run
            done = self._finite_sums(self._programs[key], call, row_tensors, at_once, units)
            if done is not None:
                sums, norm_UL, alone_U = done
                self._eager.refuse_spreading(call.losses, part, torch.isfinite(norm_UL).all(1) | alone_U)
                _add_to(total, sums)
                if bool(alone_U.any()):
                    few = units_at(part, torch.nonzero(alone_U).flatten(), call.k)
                    # Later units draw as if it had not run.
                    with torch.random.fork_rng(devices=_cuda_devices(norm_UL)):
                        alone = self._run_eager(call, few)
                    _add_to(total, alone.total)
                    norm_UL[alone_U] = norms_of(alone).to(norm_UL.device)
                return norm_UL
        eager = self._run_eager(call, part) if eager is None else eager
        _add_to(total, eager.total)
        return norms_of(eager)

    def _run_eager(self, call: "_Call", part: Any) -> BoundedSum:
        self.num_eager += 1
        units = None if call.one_loss else num_rows(part) // call.k
        return self._eager.clipped_sum(call.losses, part, num_units=units, clipping=call.clipping)

    def _run_eager_to_compare(self, call: "_Call", part: Any) -> BoundedSum:
        """In full float32, as graphs run: of TF32's products not three digits would agree."""
        with full_float32(next(t for t in tree_flatten(part)[0] if isinstance(t, Tensor)).device):
            return self._run_eager(call, part)

    def _warn_of_more_kinds(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "CompiledEngine runs chunks of this kind eagerly: there are more kinds than max_graphs = "
                f"{self._max_graphs} (other shapes, or losses that close over a new object in every call). "
                "Raise max_graphs, or pass the same objects.",
                RuntimeWarning,
                stacklevel=4,
            )

    def _finite_sums(
        self, program: Program, call: "_Call", row_tensors: Sequence[Tensor], at_once: int, units: int
    ) -> tuple[dict[str, Tensor], Tensor, Tensor] | None:
        """Sums over the finite units, norms, and which units must run alone (left out of the sums).

        Where units are not finite, the graph runs again with the rows of a finite unit in their place. Alone
        run those in doubt, and those that are finite in some groups only. None: even so padding is not
        finite.
        """
        device = row_tensors[0].device
        real_U = torch.arange(at_once, device=device) < units
        good_U = real_U
        partly_U = torch.zeros_like(real_U)
        generators = generator_states(device) if program.draws else []
        for _ in range(at_once + 1):
            sums, norm_UL, finite_UL, doubt_U = run_program(
                program, self._model, call.groups, row_tensors, good_U
            )
            finite_U = finite_UL.all(1)
            if bool(finite_U.all()):
                norm_UL = torch.where(good_U[:, None], norm_UL, math.inf)
                return sums, norm_UL[:units], (doubt_U & good_U | partly_U)[:units]
            # A norm beyond float32 is in doubt, and may be finite all the same.
            partly_U = partly_U | good_U & ~finite_U & (finite_UL.any(1) | doubt_U)
            good_U = good_U & finite_U
            if not bool(good_U.any()):
                return {}, torch.full_like(norm_UL, math.inf)[:units], partly_U[:units]
            stand_in = int(torch.nonzero(good_U)[0])
            source_U = torch.where(good_U, torch.arange(at_once, device=device), stand_in)
            row_tensors = [units_at(t, source_U, t.shape[0] // at_once) for t in row_tensors]
            set_states(generators)
        return None

    def _compile(
        self, key: Any, setting: Setting, row_tensors: Sequence[Tensor], units: int, alive: tuple[Any, ...]
    ) -> None:
        """Prove, trace and compile, on the first, second, fourth, eighth .. chunk that proves too little."""
        tries = self._unproven.get(key, 0) + 1
        # What runs to prove draws from generators of its own.
        with torch.random.fork_rng(devices=_cuda_devices(row_tensors[0])):
            program = None if tries & (tries - 1) else self._make_program(setting, row_tensors, units, alive)
        if program is None:  # what is refused does not count: it is refused again
            self._unproven[key] = tries
            return
        self._unproven.pop(key, None)
        self._programs[key] = program
        if not program.draws or row_tensors[0].device.type == "cpu":
            self._uncompared[key] = 0

    def _make_program(
        self, setting: Setting, row_tensors: Sequence[Tensor], units: int, alive: tuple[Any, ...]
    ) -> Program | None:
        """A compiled graph; None where the batch proves too little."""
        # Cloned: a tensor that comes twice in this batch may be two in the next.
        inputs = [*state_of(self._model), *(t.clone() for t in row_tensors)]
        proof = prove(setting, inputs)
        if proof is None:
            return None
        device = row_tensors[0].device
        real_U = torch.arange(setting.num_units, device=device) < units
        inputs += [real_U, max_norms(setting.groups, device)]
        graph, names = trace_sum(setting, proof, inputs)
        with torch.no_grad(), without_autocast(inputs):
            run = _compile_graph(graph.module, [*inputs, *graph.constants])
        return Program(
            run=run,
            traced=graph.module,
            names=tuple(names),
            constants=graph.constants,
            draws=graph.draws,
            half=graph.half,
            alive=alive,
        )

    def _compare(
        self,
        key: Any,
        call: "_Call",
        setting: Setting,
        part: Any,
        row_tensors: Sequence[Tensor],
        eager: BoundedSum,
    ) -> None:
        """Compare a graph, on the first, second, fourth, eighth .. chunk that does not allow it."""
        tries = self._uncompared[key] + 1
        if not tries & (tries - 1) and self._agrees(
            self._programs[key], call, setting, part, row_tensors, eager
        ):
            del self._uncompared[key]
        else:
            self._uncompared[key] = tries

    def _agrees(
        self,
        program: Program,
        call: "_Call",
        setting: Setting,
        part: Any,
        row_tensors: Sequence[Tensor],
        eager: BoundedSum,
    ) -> bool:
        """Whether a graph agrees with the eager engine where at least half of the units are clipped."""
        short_L = shorts(call.groups)
        lower = lowered(call.clipping, call.groups, norms_of(eager))
        if lower is not None:
            groups = resolve(lower, sizes(trainable(InPlace(self._model))))
            call = replace(call, clipping=lower, groups=groups)
            with torch.random.fork_rng(devices=_cuda_devices(row_tensors[0])):
                eager = eager if program.draws else self._run_eager_to_compare(call, part)
        return compare(
            program,
            self._model,
            call.groups,
            row_tensors,
            eager,
            lambda tensors: self._run_eager_to_compare(call, setting.batch(tensors)),
            short_L=short_L,
            units=num_rows(part) // call.k,
            at_once=setting.num_units,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call:
    """One call's arguments. `k`: rows a unit; `one_loss`: a unit's loss must be one value."""

    losses: Losses
    clipping: StepClipping
    groups: tuple[Group, ...]
    one_loss: bool
    k: int


def _require_positive(name: str, value: object, *, code: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a positive integer, got {value!r}.", code=code)


def _add_to(total: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    """Add sums that nobody else has: the first become the total."""
    for name, added in sums.items():
        if not (isinstance(total, SumsOnDemand) and total.adopt_first(name, added)):
            total[name].add_(added)


def _padded(leaves: Sequence[Any], size: int) -> list[Tensor]:
    """The tensors with `size` rows, the first row repeated at the end, laid out as the graph expects."""
    tensors = [leaf.detach().contiguous() for leaf in leaves if isinstance(leaf, Tensor)]
    missing = size - tensors[0].shape[0]
    if not missing:
        return tensors
    return [torch.cat([t, t[:1].expand(missing, *t.shape[1:])]) for t in tensors]


def _compile_graph(module: nn.Module, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Make code of a graph.

    Raises:
        ConfigError[no-compiler].
    """
    import torch._inductor  # slow to import: only for whoever compiles
    from torch._inductor.exc import InductorError

    # CUDA graphs may return the same memory from every call, and what a call returns is kept here.
    kept = {"triton.cudagraphs": False}
    try:
        run: Any = torch._inductor.compile(module, inputs, options=kept)  # pyright: ignore[reportArgumentType]
    except InductorError as error:
        raise ConfigError(
            f"torch's compiler failed ({type(error.inner_exception).__name__}). If the C++ compiler (the "
            "environment variable CXX) or Triton lacks something, install that; an ImportError may be a file "
            "of torch's cache (TORCHINDUCTOR_CACHE_DIR) that was cut off: delete the cache. Or use "
            "ClipEngine, which does not compile.",
            code="no-compiler",
        ) from error
    return run


def _require_compiler(model: nn.Module) -> None:
    """Refuse before anything is spent where nothing can be compiled.

    Raises:
        ConfigError[no-compiler].
    """
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    devices = {p.device.type for p in model.parameters()}
    try:
        cpp_builder.get_cpp_compiler()  # on any device: what stays on the host is compiled too
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "Compiling needs a C++ compiler, and none was found. Install one (g++ or clang++), name it in "
            "the environment variable CXX, or use ClipEngine.",
            code="no-compiler",
        ) from error
    if devices - {"cpu"} and not has_triton():
        raise ConfigError(
            f"Compiling for {sorted(devices - {'cpu'})} needs Triton, which is not installed or does not "
            "know the device. Install it, or use ClipEngine.",
            code="no-compiler",
        )
