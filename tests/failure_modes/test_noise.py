"""Failure modes 22 to 36: the noise. Each test plants the fault, or measures what would show it.

False alarms of the statistical tests: 1e-6 each, unseeded.
"""

import inspect
import math

import pytest
import torch
import torch.distributed
from scipy import stats
from torch import nn

from reticent.account import epsilon
from reticent.account.ledger import read_ledger
from reticent.bounded import BoundedSum
from reticent.errors import ConfigError, StepError
from reticent.noise import CipherNoise, add_noise
from reticent.noise import source as noise_source
from reticent.noise._keystream import KEY_BYTES, Keystream
from reticent.records import Mechanism, SamplingScheme
from reticent.train import PrivateStep, TrainSettings, resume, train
from tests.train.joint import (
    NUM_EXAMPLES,
    NoNoise,
    cross_entropy,
    make_data,
    make_model,
    make_plan,
    make_private,
    take,
    weights_of,
    with_rows,
)

ALPHA = 1e-6


def std_is(z, std):
    """Whether a sample of centred normals may have this standard deviation."""
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], z.numel())
    return bool(low <= float(z.double().square().sum()) / std**2 <= high)


def correlation(a, b):
    a, b = a.double().flatten(), b.double().flatten()
    return abs(float((a - a.mean()) @ (b - b.mean()))) / float(a.norm() * b.norm())


def nothing(model, rows):
    """A loss whose gradient is zero: what is left of a step is its noise."""
    return 0.0 * model(rows).sum(1)


def noise_of_steps(tmp_path, *, num_steps=1, chunks=1, sigma=1.7, max_norm=0.3, drawn=16, noise=None):
    """The noise that each step added to the sum, from the weights alone."""
    model = nn.Linear(300, 300, bias=False)
    plan = make_plan(num_steps=num_steps, noise_multiplier=sigma, max_norm=max_norm)
    private = make_private(
        tmp_path, model=model, plan=plan, physical_batch_size=max(1, drawn // chunks), noise=noise
    )
    found = []
    for batch in plan.batches(torch.ones(NUM_EXAMPLES, 300)):
        before = weights_of(model)
        take(private, with_rows(batch, range(drawn)), nothing)
        found.append((before - weights_of(model)) * plan.expected_batch_size)
    return found


def test_fm_22_noise_has_sigma_times_the_bound_on_the_sum(tmp_path):
    """Noise is scaled for the mean where it is added to the sum, or by the batch size's root.

    Severity: critical
    Prevented: noise is sigma times the sum's own bound, added before a division by a public constant.
    """
    (noise,) = noise_of_steps(tmp_path)
    assert std_is(noise, 1.7 * 0.3)
    assert not std_is(noise, 0.97 * 1.7 * 0.3)
    assert not std_is(noise, 1.03 * 1.7 * 0.3)


@pytest.mark.parametrize("chunks", [1, 2, 8])
def test_fm_23_noise_is_added_once_however_a_batch_is_cut(chunks, tmp_path):
    """With gradient accumulation, noise is added to every micro-batch, or only the last one's sum is noised.

    Severity: critical
    Prevented: one draw when the logical batch is complete; the sum over all chunks is what is noised.
    """
    (noise,) = noise_of_steps(tmp_path / "a", chunks=chunks)
    assert std_is(noise, 1.7 * 0.3)
    model, plan = make_model(), make_plan(max_norm=1e3)
    private = make_private(
        tmp_path / "b", model=model, plan=plan, noise=NoNoise(), physical_batch_size=16 // chunks
    )
    before = weights_of(model)
    batch = with_rows(next(plan.batches(make_data())), range(16))
    take(private, batch)
    plain = make_model()
    cross_entropy(plain, tuple(t[:16] for t in batch.dataset.tensors)).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()]) / 16
    torch.testing.assert_close(before - weights_of(model), expected, rtol=1e-4, atol=1e-6)


@pytest.fixture
def two_ranks(monkeypatch):
    """What a process of a group of two sees, without a second process."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)


def test_fm_24_several_ranks_are_refused(two_ranks, tmp_path):
    """Each of N ranks adds full noise, or a share that is only right if the seeds are as somebody said.

    Severity: critical
    Prevented: refused before a ledger is made, unless the step is given its ranks, each of which noises
    coordinates of its own (tests/dist).
    """
    with pytest.raises(ConfigError, match="2 processes"):
        make_private(tmp_path)
    assert not (tmp_path / "run").exists()


def test_fm_25_no_two_tensors_processes_or_steps_share_noise(tmp_path):
    """All ranks, or all shards of a model, draw the very same noise from one seed.

    Severity: critical
    Prevented: each rank, of shards too, has a key of its own; no byte of a key stream is used twice.
    """
    torch.manual_seed(0)
    one = CipherNoise.fresh().normal((40_000,), dtype=torch.float64)
    torch.manual_seed(0)
    two = CipherNoise.fresh().normal((40_000,), dtype=torch.float64)
    assert correlation(one, two) < 5 / math.sqrt(40_000)
    total = {"a": torch.zeros(200, 200), "b": torch.zeros(200, 200)}
    noised = add_noise(
        BoundedSum(total=total, bound=1.0, norms=torch.empty(0)),
        noise_multiplier=1.0,
        source=CipherNoise.fresh(),
    )
    assert correlation(noised["a"], noised["b"]) < 5 / math.sqrt(40_000)


def test_fm_26_the_users_seed_fixes_no_noise_and_no_key_is_written(tmp_path, monkeypatch):
    """The training seed in the configuration is the noise's key: who reads it subtracts the noise.

    Severity: critical
    Prevented: keys come from the operating system and are written nowhere; a noise seed ends privacy.
    """
    keys = []

    def remember(size, urandom=noise_source.os.urandom):
        keys.append(urandom(size))
        return keys[-1]

    monkeypatch.setattr(noise_source.os, "urandom", remember)
    for name in "ab":
        model = make_model()
        train(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            plan=make_plan(num_steps=3),
            dataset=make_data(),
            loss_per_example=cross_entropy,
            out=tmp_path / name,
            settings=TrainSettings(seed=42),
        )
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    long = [key for key in keys if len(key) >= KEY_BYTES]
    assert len(long) >= 2
    for key in long:
        assert not any(key in data or key.hex().encode() in data for data in files)
    assert len({(tmp_path / name / "weights.safetensors").read_bytes() for name in "ab"}) == 2


def test_fm_27_every_bit_of_a_key_of_256_counts(monkeypatch):
    """The generator keeps 32 bits of its seed: all its keys can be tried in an hour.

    Severity: critical
    Prevented: 256 bits from the operating system key a cipher; each of them changes the whole output.
    """
    assert KEY_BYTES * 8 == 256

    def stream(key):
        out = bytearray(64)
        Keystream(key).read_into(memoryview(out))
        return bytes(out)

    seen = {stream(bytes(KEY_BYTES))}
    for bit in range(256):
        key = bytearray(KEY_BYTES)
        key[bit // 8] ^= 1 << (bit % 8)
        seen.add(stream(bytes(key)))
    assert len(seen) == 257
    keys = []
    monkeypatch.setattr(noise_source, "Keystream", keys.append)
    for _ in range(64):
        CipherNoise.fresh()
    assert all(len(set(bytes_at)) > 32 for bytes_at in zip(*keys, strict=True)), "a part of the key is fixed"
    ours = [torch.Generator().manual_seed(seed) for seed in (5, 5 + 2**32)]
    assert torch.equal(*(torch.randn(4, generator=g) for g in ours)), "torch's own has the fault"


def test_fm_28_a_resumed_run_draws_new_noise(tmp_path, monkeypatch):
    """A restart seeds the noise again, or restores its generator: the noise of repeated steps cancels.

    Severity: critical
    Prevented: a generator of noise is never saved or copied; each process begins with a fresh key.
    """
    drawn = []
    normal = CipherNoise.normal

    def listen(self, shape, **options):
        drawn.append(normal(self, shape, **options))
        return drawn[-1]

    class Stop(Exception):
        pass

    def stop_at_the_third(*_):
        if len(drawn) > 2 * 4:  # four tensors a step
            raise Stop

    monkeypatch.setattr(CipherNoise, "normal", listen)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stopping = optimizer.register_step_pre_hook(stop_at_the_third)
    rest = {"dataset": make_data(), "out": tmp_path / "run", "loss_per_example": cross_entropy}
    with pytest.raises(Stop):
        train(model, optimizer, plan=make_plan(num_steps=8), **rest)
    stopping.remove()
    before = len(drawn)
    resume(model, optimizer, **rest)
    assert 0 < before < len(drawn)
    assert read_ledger(tmp_path / "run" / "ledger.jsonl").num_lost > 0
    values = torch.cat([z.flatten() for z in drawn])
    assert len(values.unique()) == len(values)


def test_fm_29_noise_is_drawn_anew_in_every_step(tmp_path):
    """A compiled or captured step holds one draw of noise as a constant, and repeats it.

    Severity: critical
    Prevented: noise is drawn outside of every graph, by a cipher whose counter only grows.
    """
    steps = noise_of_steps(tmp_path, num_steps=3)
    limit = 5 / math.sqrt(steps[0].numel())
    assert max(correlation(steps[i], steps[j]) for i, j in ((0, 1), (0, 2), (1, 2))) < limit
    compiled = torch.compile(lambda x: x + torch.randn(4), backend="eager")
    assert callable(compiled) and "compile" not in inspect.getsource(add_noise)


def test_fm_30_optimizers_that_compute_gradients_again_are_refused(tmp_path):
    """An optimizer's closure computes gradients again after noise was added, and steps from those.

    Severity: critical
    Prevented: optimizers that need a closure are refused; raw gradients on parameters are refused.
    """
    model = make_model()
    with pytest.raises(ConfigError, match="closure"):
        make_private(tmp_path, model=model, optimizer=torch.optim.LBFGS(model.parameters()))
    private = make_private(tmp_path, model=model)
    batch = next(private.plan.batches(make_data()))
    with pytest.raises(StepError, match="hold a gradient"), private.step(batch) as step:
        for chunk in step.chunks():
            step.backward(cross_entropy, chunk)
        cross_entropy(model, make_data().tensors).sum().backward()
    assert private.num_steps == 0


OPTIMIZERS = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_fm_31_no_path_of_a_step_is_without_noise(optimizer, dtype, tmp_path):
    """Some path adds no noise and says nothing: no parameter found, a debugging zero left behind.

    Severity: critical
    Prevented: a step noises every trainable parameter or raises; a plan without noise is refused.
    """
    seen = []
    model = nn.Linear(100, 100, bias=False).to(dtype)
    made = optimizer(model.parameters(), lr=0.1)
    made.register_step_pre_hook(lambda *_: seen.append(model.weight.grad.clone()))
    plan = make_plan(noise_multiplier=2.0, max_norm=0.5)
    private = PrivateStep(model, made, plan=plan, ledger=tmp_path / "run")
    batch = with_rows(next(plan.batches(torch.ones(NUM_EXAMPLES, 100, dtype=dtype))), range(4))
    take(private, batch, nothing)
    assert std_is(seen[0] * plan.expected_batch_size, 2.0 * 0.5)
    with pytest.raises(ConfigError, match="without noise there is no privacy"):
        PrivateStep(model, made, plan=make_plan(noise_multiplier=0.0), ledger=tmp_path / "other")


BAD = [math.nan, math.inf, -math.inf, -1.0, True, "1", None]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_fm_32_settings_that_are_no_numbers_are_refused_before_any_accountant(bad):
    """A noise multiplier of NaN passes through an accountant, which then reports epsilon 0.

    Severity: critical
    Prevented: every number is checked to be finite and in range before a library sees it.
    """
    good = {"scheme": SamplingScheme.POISSON, "sampling_prob": 0.1, "noise_multiplier": 1.0}
    for name in ("sampling_prob", "noise_multiplier"):
        with pytest.raises(ConfigError):
            Mechanism(**{**good, name: bad})
    mechanism = Mechanism(**good)
    for num_steps in {repr(bad): bad, "1.5": 1.5}.values():
        with pytest.raises(ConfigError):
            epsilon([(mechanism, num_steps)], delta=1e-5)
    for delta in (bad, 0.0, 1.0, 2.0):
        with pytest.raises(ConfigError):
            epsilon([(mechanism, 1)], delta=delta)


def test_fm_33_noise_is_drawn_and_added_in_float64(tmp_path):
    """Noise is drawn or added in half precision, which has so few values that single ones give the sum away.

    Severity: serious
    Prevented: drawn and added in float64, rounded once; half precision is refused by the source.
    """
    source = CipherNoise.fresh()
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ConfigError, match="float32 or torch"):
            source.normal((4,), dtype=dtype)
    half = BoundedSum(
        total={"w": torch.zeros(400_000, dtype=torch.bfloat16)}, bound=1.0, norms=torch.empty(0)
    )
    noised = add_noise(half, noise_multiplier=1.0, source=source)["w"]
    assert noised.dtype == torch.float32
    assert len(noised.unique()) > 300_000  # bfloat16 has about 4,000 values here
    assert len(noised.bfloat16().unique()) < 10_000


class Given:
    """A source of chosen numbers. Nothing private about it."""

    private = False

    def __init__(self, z):
        self.z = z

    def normal(self, shape, *, dtype, device="cpu"):
        return self.z.to(dtype, copy=True).view(shape)


def released(x, z):
    """What is released for a sum that is `x` everywhere, with float64 noise `z` of standard deviation 1."""
    summed = BoundedSum(total={"w": torch.full(z.shape, x)}, bound=1.0, norms=torch.empty(0))
    return add_noise(summed, noise_multiplier=1.0, source=Given(z))["w"]


@pytest.mark.parametrize("x", [0.3, -7.7, 4321.1])
def test_fm_34_every_released_value_can_come_from_a_neighbour(x):
    """The low bits of noise plus sum lie on a lattice that depends on the sum, and tell which sum it was.

    Severity: serious
    Prevented: the sum is made in float64 and rounded to a grid far coarser than either part's floats, which
        is post-processing: every released value has noise that leads to it from a neighbour's sum.
    """
    z = CipherNoise.fresh().normal((200_000,), dtype=torch.float64)
    for neighbour in (x - 1.0, x + 1.0, x + 0.123456789):
        y = released(x, z)
        s = torch.full((), neighbour).double()
        assert torch.equal(released(neighbour, y.double() - s), y)
    in_float32 = 0.3 + torch.randn(200_000)
    assert ((in_float32 - 1.4) + 1.4 != in_float32).double().mean() > 1e-3, "float32 noise has the fault"


def test_fm_35_the_work_of_a_draw_does_not_depend_on_its_values():
    """A rejection sampler takes longer for some values, and the time shows them.

    Severity: serious
    Prevented: Box-Muller: 16 bytes of key stream for each pair of normals, whatever they are.
    """
    source = CipherNoise.fresh()
    for size in (2, 1000, 100_001):
        before = source.position
        source.normal((size,), dtype=torch.float64)
        assert source.position - before == 16 * ((size + 1) // 2)


def test_fm_36_an_optimizer_sees_noised_gradients_only(tmp_path):
    """An optimizer's second moment, trust ratio or adaptive norm is computed from raw gradients.

    Severity: critical
    Prevented: `.grad` is set once, to the noised sum; raw sums are overwritten with NaN before the step.
    """
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    sums, states = [], []
    private = make_private(tmp_path, model=model, optimizer=optimizer)
    clipped_sum = private._engine.clipped_sum

    def listen(losses, batch=None, **options):
        added = clipped_sum(losses, batch, **options)
        sums.extend(added.total.values() if options.get("out") else ())  # the step's own, not the check's
        return added

    private._engine.clipped_sum = listen
    optimizer.register_step_pre_hook(lambda *_: states.extend(bool(t.isnan().all()) for t in sums))
    take(private, with_rows(next(private.plan.batches(make_data())), range(5)))
    assert states and all(states)
    assert all(p.grad is None for p in model.parameters())
    assert all(bool(v.isfinite().all()) for s in optimizer.state.values() for v in s.values())
