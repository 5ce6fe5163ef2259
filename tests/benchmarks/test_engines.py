"""Every engine that is installed gives the sums of the tests' oracle, which shares no code with any."""

import importlib.util
import math

import pytest
import torch

from benchmarks.cases import CASES
from benchmarks.engines import ENGINES
from benchmarks.reference import TOLERANCE, blocks, owners, reference
from benchmarks.work import Skip, Work
from tests.support.oracle import loop_clipped_sum, unit_gradient

PRIVATE = [e for e, engine in ENGINES.items() if engine.private]


def build(case: str) -> Work:
    if missing := CASES[case].missing():
        pytest.skip(f"needs {missing}")
    torch.manual_seed(0)
    return CASES[case].build()


@pytest.mark.parametrize("case", ["tiny", "tiny-cnn", "tiny-views", "tiny-gpt2"])
def test_the_reference_is_the_oracles(case: str) -> None:
    work = build(case)
    found = reference(work)
    want, norms = loop_clipped_sum(work.model, work.losses, work.batch, found.max_norm)
    assert found.num_clipped == int((norms > found.max_norm).sum())
    assert 0 < found.num_clipped < len(norms)
    assert found.max_error({n: g.float() for n, g in want.items()}) < 1e-5


LAYERS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}


@pytest.mark.parametrize("kind", ["per_layer", "grouped", "automatic"])
def test_the_reference_of_another_kind_weighs_as_its_papers_do(kind: str) -> None:
    work = build("tiny")
    found = reference(work, ["flat", kind])
    assert owners([*work.trainable()]) == blocks([*work.trainable()]) == LAYERS
    together = {"all": [*work.trainable()]} if kind == "automatic" else LAYERS
    share = found.max_norm / math.sqrt(len(together))
    want = {n: torch.zeros_like(p) for n, p in work.trainable().items()}
    for b in range(work.num_examples()):
        g = unit_gradient(work.model, work.losses, work.rows(b, b + 1))
        for members in together.values():
            norm = float(torch.cat([g[n].flatten() for n in members]).norm())
            weight = share / (norm + 0.01) if kind == "automatic" else min(1.0, share / norm)
            for n in members:
                want[n] += (weight * g[n]).float()
    assert found.max_error(want, kind) < 1e-5
    assert found.max_error(want) > 1e-2


def test_blocks_end_at_the_first_number_of_a_name() -> None:
    names = ["wte.weight", "h.0.attn.weight", "h.0.mlp.3.bias", "h.11.ln.weight", "head"]
    assert blocks(names) == {
        "": ["wte.weight", "head"],
        "h.0": ["h.0.attn.weight", "h.0.mlp.3.bias"],
        "h.11": ["h.11.ln.weight"],
    }


def test_a_sum_that_lacks_a_parameter_or_is_not_finite_is_wrong() -> None:
    found = reference(build("tiny"))
    bad = {n: t.clone() for n, t in found.sums["flat"].items()}
    bad["0.bias"][0] = math.nan
    assert found.max_error(bad) == math.inf
    del bad["0.bias"]
    with pytest.raises(ValueError, match=r"no sum for 0\.bias"):
        found.max_error(bad)
    with pytest.raises(ValueError, match="no reference for clipping grouped"):
        found.max_error(bad, "grouped")


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch._prims_common.check. is deprecated:FutureWarning")
@pytest.mark.slow
@pytest.mark.parametrize("case", ["tiny-views", "tiny-gpt2"])
def test_the_compiled_engines_sums_are_right(case: str) -> None:
    check("reticent-compiled", case)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap of attention
@pytest.mark.parametrize(
    "engine",
    [e for e, engine in ENGINES.items() if engine.private and not engine.peer and e != "reticent-compiled"]
    + ["functorch"],
)
@pytest.mark.parametrize("case", ["tiny", "tiny-cnn", "tiny-views", "tiny-gpt2"])
def test_the_engines_sums_are_right(engine: str, case: str) -> None:
    check(engine, case)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [e for e in PRIVATE if ENGINES[e].peer and e != "functorch"])
@pytest.mark.parametrize("case", ["tiny", "tiny-cnn", "tanh-cnn"])
def test_the_peers_sums_are_right_where_installed(engine: str, case: str) -> None:
    for package in ENGINES[engine].needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if engine in ("fastdp", "private-transformers"):
        pytest.skip("needs a checkout; run the command")
    check(engine, case)


def check(engine: str, case: str) -> None:
    work = build(case)
    found = reference(work, [ENGINES[engine].kind])
    work = build(case)
    try:
        step = ENGINES[engine].make(work, found.max_norm)
    except Skip as why:
        pytest.skip(str(why))
    for _ in range(2):
        error = found.max_error(dict(step()), ENGINES[engine].kind)
        assert error < TOLERANCE, f"{engine} is wrong by {error:.2g} C"
