"""CipherNoise: a standard normal law, independence, and one use of each byte.

False alarms: sources here are unseeded, as in real use, so each statistical check is set to a rate of
at most 1e-6; those over many pairs use 6 standard errors (2e-9 each).
"""

import copy
import math
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from reticent.errors import ConfigError, StepError
from reticent.noise import CipherNoise, NoiseSource
from reticent.noise._keystream import KEY_BYTES, Keystream
from reticent.noise.source import _PAIRS, _box_muller

ALPHA = 1e-6
N = 1_000_000
SOURCES = pytest.mark.parametrize(
    "source", [CipherNoise.fresh(), CipherNoise.reproducible(7)], ids=["fresh", "reproducible"]
)


def draw(source: NoiseSource, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return source.normal(shape, dtype=dtype, device="cpu")


def std_is_accepted(z: torch.Tensor, std: float) -> bool:
    """Two-sided chi-square test of the standard deviation, mean known to be 0, at rate ALPHA."""
    statistic = float(z.double().square().sum()) / std**2
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], z.numel())
    return bool(low <= statistic <= high)


def correlation_in_standard_errors(x: torch.Tensor, y: torch.Tensor) -> float:
    """Correlation times sqrt(n): N(0, 1) if the two are independent."""
    return abs(float(np.corrcoef(x.flatten(), y.flatten())[0, 1])) * math.sqrt(x.numel())


@SOURCES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_standard_deviation_is_one_and_wrong_ones_are_rejected(source, dtype):
    z = draw(source, N, dtype=dtype)
    assert z.dtype == dtype
    assert std_is_accepted(z, 1.0)
    for wrong in (2 / 3, 3 / 2, 0.99, 1.01):
        assert not std_is_accepted(z, wrong)


@SOURCES
def test_the_law_is_normal(source):
    z = draw(source, N).numpy()
    assert stats.kstest(z, "norm").pvalue > ALPHA
    assert stats.kstest(z * 1.03, "norm").pvalue < ALPHA  # the test can fail
    assert stats.kstest(np.abs(z), "halfnorm").pvalue > ALPHA
    beyond = 2 * stats.norm.sf(4.0)
    assert stats.binomtest(int((np.abs(z) > 4.0).sum()), N, beyond).pvalue > ALPHA


def test_box_muller_matches_its_formula_and_reaches_beyond_nine_deviations():
    words = [0, 1, 2**62, 2**63 - 1, -1, -(2**63), 0x1234_5678_9ABC_DEF0]
    radius = torch.tensor([w for w in words for _ in words], dtype=torch.int64)
    angle = torch.tensor(words * len(words), dtype=torch.int64)
    z = _box_muller(radius.clone(), angle).view(2, -1)
    for i, (bits, turn) in enumerate(zip(radius.tolist(), angle.tolist(), strict=True)):
        r = math.sqrt(2.0 * math.log(2**63 / ((bits & (2**63 - 1)) + 1)))
        a = math.pi * turn / 2**63
        assert z[0, i] == pytest.approx(r * math.cos(a), rel=1e-14, abs=1e-14)
        assert z[1, i] == pytest.approx(r * math.sin(a), rel=1e-14, abs=1e-14)
    assert torch.isfinite(z).all()
    assert z.abs().max() > 9.3


def test_steps_tensors_rows_and_neighbours_are_independent():
    source = CipherNoise.fresh()
    step, other = draw(source, 256, 1024), draw(source, 256, 1024)  # two draws, many rows
    assert correlation_in_standard_errors(step, other) < 6
    assert correlation_in_standard_errors(step.square(), other.square()) < 6
    rows = np.corrcoef(torch.cat([step, other]).numpy()) - np.eye(512)
    assert np.abs(rows).max() * math.sqrt(1024) < 7  # 130,816 pairs: rate below 1e-6 in all
    flat = step.flatten()
    for lag in (1, 2, 3, 7, 64, 255, 1024, flat.numel() // 2):
        assert correlation_in_standard_errors(flat[:-lag], flat[lag:]) < 6
        assert correlation_in_standard_errors(flat[:-lag].square(), flat[lag:].square()) < 6
    assert correlation_in_standard_errors(flat, other.flatten() + 0.03 * flat) > 6  # it can fail


def test_the_two_normals_of_a_pair_are_independent():
    cosine, sine = draw(CipherNoise.fresh(), 2 * _PAIRS).view(2, -1)
    for f in (lambda x: x, torch.square, torch.abs):
        assert correlation_in_standard_errors(f(cosine), f(sine)) < 6


def test_no_value_comes_twice():
    source = CipherNoise.fresh()
    z = torch.cat([draw(source, 9999) for _ in range(10)])  # odd counts: the spare normal is thrown away
    assert z.unique().numel() == z.numel()


def test_every_bit_of_the_key_matters():
    key = bytes(range(KEY_BYTES))
    outputs = [key, *((int.from_bytes(key) ^ (1 << bit)).to_bytes(KEY_BYTES) for bit in range(256))]
    drawn = torch.stack([draw(CipherNoise(Keystream(k), private=False), 512) for k in outputs])
    z = np.corrcoef(drawn.numpy()) - np.eye(len(outputs))
    assert np.abs(z).max() * math.sqrt(512) < 7  # fixed keys: no false alarms


def test_two_fresh_sources_differ():
    a, b = (draw(CipherNoise.fresh(), N // 20) for _ in range(2))
    assert correlation_in_standard_errors(a, b) < 6
    assert not set(a.tolist()) & set(b.tolist())


def test_the_reproducible_source_repeats_and_says_that_it_is_not_private():
    first, again = CipherNoise.reproducible(3), CipherNoise.reproducible(3)
    assert not first.private
    assert CipherNoise.fresh().private
    z = draw(first, 100_001)
    assert torch.equal(z, draw(again, 100_001))
    assert torch.equal(draw(first, 5), draw(again, 5))
    for other in (CipherNoise.reproducible(4), CipherNoise.reproducible(3, start=1)):
        assert correlation_in_standard_errors(z, draw(other, 100_001)) < 6


def test_a_seed_must_be_an_integer():
    for seed, start in ((True, 0), (3, False)):
        with pytest.raises(ConfigError, match=r"must be an integer.*\[seed\]"):
            CipherNoise.reproducible(seed, start=start)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (3, 5), (2 * _PAIRS + 1,)])
def test_any_shape(shape):
    z = draw(CipherNoise.fresh(), *shape)
    assert z.shape == shape
    assert torch.isfinite(z).all()
    assert z.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_half_precision_is_refused(dtype):
    with pytest.raises(ConfigError, match=r"float32 or torch.float64.*\[noise-dtype\]"):
        draw(CipherNoise.fresh(), 3, dtype=dtype)


def test_float32_draws_are_the_rounded_float64_ones():
    exact, rounded = (
        draw(CipherNoise.reproducible(1), 70_001, dtype=d) for d in (torch.float64, torch.float32)
    )
    assert torch.equal(exact.float(), rounded)


def test_the_keystream_is_aes_in_counter_mode_each_byte_once():
    """Against ECB over the counter blocks, which shares no code with ours but the block cipher."""
    key = bytes(range(100, 132))
    blocks = b"".join(i.to_bytes(16, "big") for i in range(200_000))
    truth = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)
    stream, got = Keystream(key), bytearray()
    for length in (16, 32, 16 * 1000, 16, (1 << 20) + 16 * 3, 48):
        piece = bytearray(length)
        before = stream.position
        stream.read_into(memoryview(piece))
        assert stream.position == before + length
        got += piece
    assert bytes(got) == truth[: len(got)]


def test_threads_never_share_bytes():
    source, alone = CipherNoise.reproducible(0), CipherNoise.reproducible(0)
    drawn: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: drawn.extend(draw(source, 64) for _ in range(100))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = torch.stack([draw(alone, 64) for _ in range(800)])
    got = torch.stack(drawn)
    assert sorted(map(tuple, got.tolist())) == sorted(map(tuple, expected.tolist()))


def test_one_thread_at_a_time_reads_the_keystream():
    """With a cipher slow enough to be interrupted: overlapping reads would share its state."""
    inside, overlaps = [], []

    class SlowCipher:
        def update_into(self, data: memoryview, buffer: memoryview) -> None:
            overlaps.append(len(inside))
            inside.append(1)
            time.sleep(0.01)
            inside.pop()

    stream = Keystream(bytes(KEY_BYTES))
    stream._encryptor = SlowCipher()
    threads = [threading.Thread(target=stream.read_into, args=(memoryview(bytearray(16)),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [0] * 8
    assert stream.position == 8 * 16


@SOURCES
@pytest.mark.parametrize(
    "take",
    [pickle.dumps, copy.copy, copy.deepcopy, lambda s: copy.deepcopy(s._keystream), lambda s: s.__reduce__()],
)
def test_copies_and_pickles_are_refused(source, take):
    with pytest.raises(StepError, match=r"cannot be copied, pickled or saved.*\[noise-copied\]"):
        take(source)


def test_a_source_cannot_be_saved_with_torch(tmp_path):
    with pytest.raises(StepError, match="noise-copied"):
        torch.save({"noise": CipherNoise.fresh()}, tmp_path / "state.pt")


def test_a_forked_child_is_refused(monkeypatch):
    source = CipherNoise.fresh()
    draw(source, 4)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(StepError, match=r"another process.*\[noise-forked\]"):
        draw(source, 4)


@pytest.mark.slow
def test_memory_stays_bounded_for_fifty_million_normals():
    program = """
import resource, torch
from reticent.noise import CipherNoise
torch.set_num_threads(1)
source = CipherNoise.fresh()
source.normal((1 << 18,), dtype=torch.float32)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
out = source.normal((50_000_000,), dtype=torch.float32)
print(peak() - before)
"""
    grown = float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)
    assert grown < 191 + 40  # MiB: the result itself, and temporaries
