"""Every way to clip, in every precision, eager and compiled, against one unit at a time in float64.

The oracle is the paper's loop over units, groups and all, on the float64 twin of each problem; it shares no
code with the engine. Modules beside this one try more models and more corners of single cells.

What has no cell, and why:

    float64 autocast        autocast lowers float32 operations only
    compiled x ghost, loop  the compiled engine has one method of its own
    compiled x bilinear, einsum, ...    refused: `REFUSED` in test_compiled_kinds.py
    compiled x checkpointed dropout     run again in a graph it draws another mask, so it is refused (below)
    bf16 x loop             the engine's loop is plain autograd, and the others are compared with the truth
    padding rows that come as NaN   nothing gives such rows: padding repeats the chunk's first row. Where that
                            row is NaN, so is padding (test_compiled.py); here NaN is put there by force

Shape letters (this file): U units, L groups.
"""

import fnmatch
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reticent.clip import ClipEngine, CompiledEngine, _compiled
from reticent.clip._groups import Group
from reticent.clipping import AutomaticClipping, FlatClipping, GroupedClipping, PerLayerClipping, StepClipping
from reticent.errors import UnsupportedModel
from tests.support import hf, oracle, zoo
from tests.support.case import Case, Problem
from tests.support.judge import median_norm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch._prims_common.check. is deprecated:FutureWarning"),
]

CASES = zoo.named(
    "mlp", "cnn-group-norm", "lm-tied-function", "class-token", "lstm-time-major-square", "encoder-layer",
    "relative-bias-table", "weight-standardised-conv", "own-rms-norm",
)  # fmt: skip
MODES = ("flat", "ghost", "loop", "per-layer", "automatic", "grouped")
STABILITY = 0.05

# The share of U bounds by which a sum may differ from the truth, and of itself by which a norm may.
SUMS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
NORMS = {torch.float64: 1e-10, torch.float32: 1e-3, torch.bfloat16: 5e-2}


def clipping_of(mode: str, problem: Problem, max_norm: float) -> StepClipping:
    match mode:
        case "per-layer":
            return PerLayerClipping(max_norm=max_norm)
        case "automatic":
            return AutomaticClipping(max_norm=max_norm, stability=STABILITY)
        case "grouped":
            one = trainable(problem)[-1]
            return GroupedClipping(max_norms=((one, 0.3 * max_norm), ("*", max_norm)))
    return FlatClipping(max_norm=max_norm)


def trainable(problem: Problem) -> list[str]:
    return [n for n, p in problem.model.named_parameters() if p.requires_grad]


def groups_of(clipping: StepClipping, names: list[str]) -> list[tuple[list[str], float]]:
    """Names, and C, of each group: written down from the definitions."""
    match clipping:
        case PerLayerClipping():
            owners = dict.fromkeys(n.rpartition(".")[0] for n in names)
            layers = sorted(owners, key=lambda m: -m.count(".") if m else 1)  # inner ones first
            each = clipping.max_norm / math.sqrt(len(layers))
            return [([n for n in names if n.rpartition(".")[0] == layer], each) for layer in layers]
        case GroupedClipping():
            patterns = [p for p, _ in clipping.max_norms]
            first = {n: next(p for p in patterns if fnmatch.fnmatchcase(n, p)) for n in names}
            return [([n for n in names if first[n] == p], bound) for p, bound in clipping.max_norms]
    return [(names, clipping.max_norm)]


def truth(
    problem: Problem, clipping: StepClipping, num_units: int | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """The sum, and norms (U, L), one unit at a time."""
    units = problem.num_rows if num_units is None else num_units
    k = problem.num_rows // units
    groups = groups_of(clipping, trainable(problem))
    total: dict[str, Tensor] = {}
    norm_UL = torch.zeros(units, len(groups), dtype=torch.float64)
    for u in range(units):
        rows = oracle.take_rows(problem.batch, slice(u * k, (u + 1) * k))
        grads = oracle.unit_gradient(problem.model, problem.losses, rows)
        for i, (names, bound) in enumerate(groups):
            norm = norm_UL[u, i] = oracle.norm_of({n: grads[n] for n in names})
            automatic = isinstance(clipping, AutomaticClipping)
            weight = bound / (norm + STABILITY) if automatic else 1 / max(1.0, float(norm) / bound)
            for n in names:
                total[n] = total.get(n, 0) + weight * grads[n]
    return total, norm_UL


def judge(answer: Any, want: tuple[dict[str, Tensor], Tensor], dtype: torch.dtype) -> None:
    """Sum and norms near the truth; in float32 and float64 no norm below it."""
    total, want_UL = want
    norm_UL = answer.norms[:, None] if answer.group_norms is None else answer.group_norms
    assert norm_UL.shape == want_UL.shape and norm_UL.dtype == torch.float64
    noise = 4 * torch.finfo(dtype).eps * float(want_UL.max())  # of a gradient that is zero but for rounding
    off_UL = norm_UL / want_UL.clamp_min(1e-300) - 1
    told_UL = want_UL > noise
    over, under = float((off_UL * told_UL).max()), -float((off_UL * told_UL).min())
    assert bool((norm_UL <= want_UL * (1 + NORMS[dtype]) + noise).all()), f"a norm is {over:.1e} too large"
    below = NORMS[dtype] if dtype == torch.bfloat16 else 0.0
    assert bool((norm_UL >= want_UL * (1 - below))[told_UL].all()), f"a norm is {under:.1e} rounded down"
    gap = oracle.distance(dict(answer.total), total) / (len(want_UL) * answer.bound)
    assert gap <= SUMS[dtype], f"the sum is off by {gap:.1e} of {len(want_UL)} bounds"


def eager(problem: Problem, mode: str, max_norm: float, num_units: int | None = None) -> Any:
    method = mode if mode in ("ghost", "loop") else "book-keeping"
    clipping = clipping_of(mode, problem, max_norm)
    engine = ClipEngine(problem.model, clipping=clipping, method=method)
    return engine.clipped_sum(problem.losses, problem.batch, num_units=num_units)


def units_of_two(problem: Problem) -> Problem:
    rows = torch.arange(6) % problem.num_rows
    return replace(problem, batch=oracle.take_rows(problem.batch, rows))


def autocast(problem: Problem) -> Problem:
    def losses(batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return problem.losses(batch).float()

    return replace(problem, losses=losses)


# -- eager --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_every_mode_is_exact_in_every_precision(case: Case, mode: str, dtype: torch.dtype) -> None:
    wide, problem = case.build(0, torch.float64), case.build(0, dtype)
    max_norm = median_norm(wide)
    want = truth(wide, clipping_of(mode, wide, max_norm))
    judge(eager(problem, mode, max_norm), want, dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_units_of_two_rows_are_exact_in_every_mode(case: Case, mode: str) -> None:
    problem = units_of_two(case.build(0, torch.float64))
    max_norm = 2 * median_norm(problem)
    want = truth(problem, clipping_of(mode, problem, max_norm), num_units=3)
    judge(eager(problem, mode, max_norm, num_units=3), want, torch.float64)


@pytest.mark.parametrize("mode", ["flat", "ghost", "per-layer", "automatic"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_bfloat16_is_within_its_tolerance_of_the_float64_truth(case: Case, mode: str) -> None:
    wide, problem = case.build(0, torch.float64), autocast(case.build(0, torch.float32))
    max_norm = median_norm(wide)
    want = truth(wide, clipping_of(mode, wide, max_norm))
    got = eager(problem, mode, max_norm)
    assert {t.dtype for t in got.total.values()} == {torch.float32}
    judge(got, want, torch.bfloat16)


def checkpointed(use_reentrant: bool | None) -> Problem:
    """Blocks whose activations are formed again in the backward, or not, and a tied head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)) for _ in range(2)
        ).double()
        model = nn.ModuleDict({"table": nn.Embedding(9, 6).double(), "blocks": blocks})
        batch = torch.randint(0, 9, (6, 4))

    def losses(ids: Tensor) -> Tensor:
        x = model["table"](ids)
        for block in blocks:
            x = x + (block(x) if use_reentrant is None else checkpoint(block, x, use_reentrant=use_reentrant))
        return F.cross_entropy((x @ model["table"].weight.T).mT, ids, reduction="none").mean(1)

    return Problem(model=model, losses=losses, batch=batch)


@pytest.mark.parametrize("num_units", [None, 3])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_activation_checkpointing_is_exact_in_every_mode(
    mode: str, use_reentrant: bool, num_units: int | None
) -> None:
    plain, problem = checkpointed(None), checkpointed(use_reentrant)
    want = truth(plain, clipping_of(mode, plain, 0.2), num_units)
    judge(eager(problem, mode, 0.2, num_units), want, torch.float64)


# -- compiled -----------------------------------------------------------------------------------------


@pytest.fixture
def aot_eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that torch's compiler does to a graph, but for making code of it."""
    from torch._dynamo.backends.debugging import aot_eager

    runs = []

    def compiled(module: Any, inputs: list[Tensor]) -> Callable[..., Any]:
        runs.append(aot_eager(module, inputs))
        return runs[-1]

    monkeypatch.setattr(_compiled, "_compile_graph", compiled)
    yield
    assert runs, "nothing was compiled"


def check_compiled(
    problem: Problem, want: Any, clipping: StepClipping, dtype: torch.dtype, num_units: int | None = None
) -> None:
    """The first chunk, a second one, and padding of one unit in both."""
    k = 1 if num_units is None else problem.num_rows // num_units
    engine = CompiledEngine(
        problem.model, clipping=clipping, physical_batch_size=problem.num_rows + max(k, 1)
    )
    judge(engine.clipped_sum(problem.losses, problem.batch, num_units=num_units), want, dtype)
    compared = engine.num_eager
    assert compared in (1, 2)  # twice where less than half of the units were clipped
    judge(engine.clipped_sum(problem.losses, problem.batch, num_units=num_units), want, dtype)
    assert engine.num_eager == compared


def compiled_cell(case: Case, mode: str, dtype: torch.dtype, num_units: int | None = None) -> None:
    wide = case.build(0, torch.float64)
    problem = case.build(0, torch.float32 if dtype == torch.bfloat16 else dtype)
    if num_units is not None:
        wide, problem = units_of_two(wide), units_of_two(problem)
    problem = autocast(problem) if dtype == torch.bfloat16 else problem
    clipping = clipping_of(mode, wide, median_norm(wide))
    check_compiled(problem, truth(wide, clipping, num_units), clipping, dtype, num_units)


AOT = [
    ("cnn-group-norm", "flat", torch.float64, None),
    ("own-rms-norm", "flat", torch.float32, None),
    ("mlp", "per-layer", torch.float64, None),
    ("mlp", "per-layer", torch.float32, 3),
    ("mlp", "automatic", torch.float32, None),
    ("mlp", "grouped", torch.float64, 3),
    ("mlp", "flat", torch.bfloat16, None),
]
AOT_SLOW = [
    (case.name, mode, torch.float64, num_units)
    for case in CASES
    for mode, num_units in (("flat", 3), ("per-layer", None), ("automatic", None), ("grouped", None))
]


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize(
    ("name", "mode", "dtype", "num_units"),
    [*AOT, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in AOT_SLOW)],
)
def test_through_the_compiler_without_its_code(
    name: str, mode: str, dtype: torch.dtype, num_units: int | None
) -> None:
    compiled_cell(zoo.named(name)[0], mode, dtype, num_units)


def nan_padding(leaves: Any, size: int) -> list[Tensor]:
    """As `_padded`, with NaN in padding where a tensor can hold it."""
    tensors = [leaf.detach().contiguous() for leaf in leaves]
    missing = size - len(tensors[0])
    return [
        torch.cat([t, torch.full_like(t[:1], math.nan).expand(missing, *t.shape[1:])])
        if t.is_floating_point()
        else torch.cat([t, t[:1].expand(missing, *t.shape[1:])])
        for t in tensors
    ]


def check_nan_padding(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    problem = zoo.named("mlp")[0].build(0, torch.float64)
    clipping = clipping_of(mode, problem, median_norm(problem))
    engine = CompiledEngine(problem.model, clipping=clipping, physical_batch_size=problem.num_rows + 3)
    engine.clipped_sum(problem.losses, problem.batch)
    compared = engine.num_eager
    monkeypatch.setattr(_compiled, "_padded", nan_padding)
    for rows in (problem.num_rows, 2):
        part = replace(problem, batch=oracle.take_rows(problem.batch, slice(0, rows)))
        got = engine.clipped_sum(part.losses, part.batch)
        assert all(bool(t.isfinite().all()) for t in got.total.values())
        judge(got, truth(part, clipping), torch.float64)
    assert engine.num_eager == compared


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize("mode", ["flat", "per-layer"])
def test_padding_that_holds_nan_adds_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_nan_padding(monkeypatch, mode)


@pytest.mark.slow
def test_compiled_padding_that_holds_nan_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    check_nan_padding(monkeypatch, "per-layer")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "mode", "dtype", "num_units"),
    [
        (zoo.named("cnn-group-norm")[0], "flat", torch.float32, None),
        (hf.named("gpt2-tied"), "flat", torch.float32, None),
        (zoo.named("encoder-layer")[0], "per-layer", torch.float64, None),
        (zoo.named("class-token")[0], "automatic", torch.float32, None),
        (zoo.named("lm-tied-function")[0], "per-layer", torch.float64, 3),
        (zoo.named("mlp")[0], "automatic", torch.bfloat16, None),
    ],
    ids=str,
)
def test_compiled_to_code(case: Case, mode: str, dtype: torch.dtype, num_units: int | None) -> None:
    compiled_cell(case, mode, dtype, num_units)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("mode", ["flat", "per-layer"])
def test_activation_checkpointing_is_exact_in_one_graph(
    mode: str, use_reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compiled, "_compile_graph", lambda module, inputs: module)
    plain, problem = checkpointed(None), checkpointed(use_reentrant)
    clipping = clipping_of(mode, plain, 0.2)
    check_compiled(problem, truth(plain, clipping), clipping, torch.float64)


@pytest.mark.parametrize("at_once", [6, 1])
@pytest.mark.parametrize(("use_reentrant", "trained_before"), [(False, False), (False, True), (True, True)])
def test_checkpointed_dropout_is_refused_in_a_graph(
    use_reentrant: bool, trained_before: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph cannot set the generator back: what runs again would draw anew."""
    monkeypatch.setattr(_compiled, "_compile_graph", lambda module, inputs: module)
    torch.manual_seed(0)
    first = nn.Linear(4, 4) if trained_before else nn.Identity()
    model = nn.Sequential(first, nn.Sequential(nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 3)))
    engine = CompiledEngine(model, max_norm=0.1, physical_batch_size=at_once)

    def losses(x: Tensor) -> Tensor:
        return checkpoint(model[1], model[0](x), use_reentrant=use_reentrant).square().sum(1)

    with pytest.raises(UnsupportedModel, match="its backward draws random numbers") as caught:
        engine.clipped_sum(losses, torch.randn(6, 4))
    assert caught.value.code == "compile-unstable"


# -- the comparison can fail --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["flat", "ghost", "per-layer", "automatic", "grouped"])
def test_a_thousandth_in_one_groups_weight_would_be_noticed(
    mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = zoo.named("mlp")
    wide, problem = case.build(0, torch.float64), case.build(0, dtype)
    max_norm = median_norm(wide)
    want = truth(wide, clipping_of(mode, wide, max_norm))
    plain, last = Group.weights, trainable(problem)[-1]

    def off(self: Group, norm_U: Tensor, max_norm: Tensor | None = None) -> Tensor:
        return plain(self, norm_U, max_norm) * (1 - 1e-3 * (last in self.names))  # more is refused by ghost

    monkeypatch.setattr(Group, "weights", off)
    with pytest.raises(AssertionError, match="the sum is off"):
        judge(eager(problem, mode, max_norm), want, dtype)
