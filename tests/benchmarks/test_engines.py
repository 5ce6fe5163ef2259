"""Every engine that is installed gives the sums of the tests' oracle, which shares no code with any."""

import importlib.util
import math

import pytest
import torch

from benchmarks.cases import CASES
from benchmarks.engines import ENGINES
from benchmarks.reference import TOLERANCE, owners, reference
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
    found = reference(work, per_layer=True)
    want, norms = loop_clipped_sum(work.model, work.losses, work.batch, found.max_norm)
    assert found.num_clipped == int((norms > found.max_norm).sum())
    assert 0 < found.num_clipped < len(norms)
    assert found.max_error({n: g.float() for n, g in want.items()}, per_layer=False) < 1e-5


def test_the_reference_per_layer_clips_each_modules_gradient() -> None:
    work = build("tiny")
    found = reference(work, per_layer=True)
    assert owners(list(work.trainable())) == {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
    share = found.max_norm / math.sqrt(2)
    want = {n: torch.zeros_like(p) for n, p in work.trainable().items()}
    for b in range(work.num_examples()):
        g = unit_gradient(work.model, work.losses, work.rows(b, b + 1))
        for layer in ("0", "2"):
            norm = torch.cat([g[f"{layer}.weight"].flatten(), g[f"{layer}.bias"]]).norm()
            for part in ("weight", "bias"):
                want[f"{layer}.{part}"] += (min(1.0, share / float(norm)) * g[f"{layer}.{part}"]).float()
    assert found.max_error(want, per_layer=True) < 1e-5
    assert found.max_error(want, per_layer=False) > 1e-2


def test_a_sum_that_lacks_a_parameter_or_is_not_finite_is_wrong() -> None:
    found = reference(build("tiny"), per_layer=False)
    bad = {n: t.clone() for n, t in found.flat.items()}
    bad["0.bias"][0] = math.nan
    assert found.max_error(bad, per_layer=False) == math.inf
    del bad["0.bias"]
    with pytest.raises(ValueError, match=r"no sum for 0\.bias"):
        found.max_error(bad, per_layer=False)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch._prims_common.check. is deprecated:FutureWarning")
@pytest.mark.slow
@pytest.mark.parametrize("case", ["tiny-views", "tiny-gpt2"])
def test_the_compiled_engines_sums_are_right(case: str) -> None:
    check("reticent-compiled", case)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap of attention
@pytest.mark.parametrize(
    "engine", ["reticent-flat", "reticent-low-memory", "reticent-per-layer", "functorch"]
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
    found = reference(work, per_layer=True)
    work = build(case)
    try:
        step = ENGINES[engine].make(work, found.max_norm)
    except Skip as why:
        pytest.skip(str(why))
    for _ in range(2):
        error = found.max_error(dict(step()), per_layer=ENGINES[engine].per_layer)
        assert error < TOLERANCE, f"{engine} is wrong by {error:.2g} C"
