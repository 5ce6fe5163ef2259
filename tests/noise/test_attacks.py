"""Attacks on the noise: regenerate it from a seed, or find its key somewhere.

The attacker knows the code, the configuration, the clipped sum but for one record, and sees what was
released. The same attack breaks a planted source whose key has 16 bits.
"""

import gc
import hashlib
import os
import random
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import torch

from reticent.bounded import BoundedSum
from reticent.errors import ReticentError
from reticent.noise import CipherNoise, add_noise
from reticent.noise._keystream import KEY_BYTES, Keystream
from reticent.sample import SampleStream

STD = 2.0
SIZE = 8
Candidate = Callable[[], np.ndarray]


def attack(released: np.ndarray, known_sum: np.ndarray, candidates: Iterable[Candidate]) -> bool:
    """Whether some candidate's noise explains the release to float32 rounding."""
    residual = (released - known_sum) / STD
    return any(np.abs(candidate() - residual).max() < 1e-5 for candidate in candidates)


def release(source: CipherNoise) -> tuple[np.ndarray, np.ndarray]:
    """The victim's step: a sum that the attacker knows, noised."""
    total = torch.linspace(-1.0, 1.0, SIZE)
    bounded = BoundedSum(total={"w": total}, bound=1.0, norms=torch.zeros(0))
    noised = add_noise(bounded, noise_multiplier=STD, source=source)["w"]
    return noised.double().numpy(), total.double().numpy()


def from_source(source: CipherNoise) -> np.ndarray:
    return source.normal((SIZE,), dtype=torch.float64, device="cpu").numpy()


def weak_key(number: int) -> bytes:
    """The planted mistake: 256 bits of key, 16 of them unknown."""
    return hashlib.sha256(number.to_bytes(2, "big")).digest()


@pytest.fixture(scope="module")
def every_weak_key() -> list[Candidate]:
    """Brute force: the noise of each of the 65,536 keys (a second or two of work)."""
    noises = (from_source(CipherNoise(Keystream(weak_key(n)), private=False)) for n in range(1 << 16))
    return [lambda noise=noise: noise for noise in noises]


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def from_user_seed(seed: int) -> Iterator[Candidate]:
    """Everything one could generate from a seed that the user set or the configuration shows."""

    def torch_global() -> np.ndarray:
        torch.manual_seed(seed)
        return torch.randn(SIZE, dtype=torch.float64).numpy()

    def torch_float32() -> np.ndarray:
        torch.manual_seed(seed)
        return torch.randn(SIZE).double().numpy()

    def torch_generator() -> np.ndarray:
        return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()

    def python() -> np.ndarray:
        twister = random.Random(seed)
        return np.array([twister.gauss() for _ in range(SIZE)])

    yield from (torch_global, torch_float32, torch_generator, python)
    yield lambda: np.random.RandomState(seed).standard_normal(SIZE)
    yield lambda: np.random.default_rng(seed).standard_normal(SIZE)
    yield lambda: SampleStream.reproducible(seed).generator().standard_normal(SIZE)
    yield lambda: from_source(CipherNoise.reproducible(seed))
    text = str(seed).encode()
    for key in (
        seed.to_bytes(KEY_BYTES, "big"),
        seed.to_bytes(KEY_BYTES, "little"),
        hashlib.sha256(text).digest(),
        random.Random(seed).randbytes(KEY_BYTES),
        np.random.RandomState(seed).bytes(KEY_BYTES),
        np.random.default_rng(seed).bytes(KEY_BYTES),
    ):
        yield lambda key=key: from_source(CipherNoise(Keystream(key), private=False))


@pytest.mark.parametrize("seed", [0, 1, 42, 1234])
def test_noise_cannot_be_regenerated_from_the_users_seeds(seed):
    seed_everything(seed)
    released, known = release(CipherNoise.fresh())
    assert not attack(released, known, (c for s in {0, 1, 42, 1234, seed} for c in from_user_seed(s)))


def test_the_same_attack_breaks_noise_from_a_user_seed():
    released, known = release(CipherNoise.reproducible(42))
    assert attack(released, known, from_user_seed(42))


def test_the_same_attack_breaks_a_planted_sixteen_bit_key_space(every_weak_key):
    planted = int.from_bytes(os.urandom(2))
    released, known = release(CipherNoise(Keystream(weak_key(planted)), private=False))
    assert attack(released, known, every_weak_key)


def test_brute_force_over_sixteen_bits_fails_against_a_fresh_source(every_weak_key):
    released, known = release(CipherNoise.fresh())
    assert not attack(released, known, every_weak_key)


def test_seeding_everything_twice_gives_different_noise():
    outputs = []
    for _ in range(2):
        seed_everything(7)
        outputs.append(release(CipherNoise.fresh())[0])
    assert not np.allclose(*outputs, atol=0.01)


def test_two_processes_with_equal_seeds_and_hash_seeds_differ():
    program = (
        "import random, numpy, torch; random.seed(0); numpy.random.seed(0); torch.manual_seed(0)\n"
        "from reticent.noise import CipherNoise\n"
        "print(CipherNoise.fresh().normal((4,), dtype=torch.float64).tolist())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    run = [sys.executable, "-c", program]
    outputs = {subprocess.run(run, env=environment, check=True, capture_output=True).stdout for _ in range(2)}
    assert len(outputs) == 2


def test_the_key_is_256_bits_from_the_operating_system(monkeypatch):
    asked = []
    monkeypatch.setattr("os.urandom", lambda n: asked.append(n) or bytes(n))
    CipherNoise.fresh()
    assert asked == [32]


def everything_reachable(root: object) -> Iterator[object]:
    """Every object that can be reached from `root` but modules, types and functions."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        item = waiting.pop()
        yield item
        neighbours = list(gc.get_referents(item))
        for name in dir(item):
            if not name.startswith("__"):
                try:
                    neighbours.append(getattr(item, name))
                except Exception:
                    continue
        for neighbour in neighbours:
            plain = not isinstance(neighbour, type(os) | type) and not callable(neighbour)
            if plain and id(neighbour) not in seen:
                seen.add(id(neighbour))
                waiting.append(neighbour)


def shown_by_the_error(call: Callable[[], object]) -> str:
    """What a log would show that prints the local variables of every frame of the traceback."""
    try:
        call()
    except ReticentError as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    raise AssertionError("no error")


def holds(key: bytes, text: str) -> bool:
    return any(form in text for form in (str(key)[2:-1], key.hex(), str(int.from_bytes(key)), str(list(key))))


def test_the_key_is_in_no_repr_attribute_state_or_traceback(monkeypatch):
    key = bytes(range(65, 97))
    monkeypatch.setattr("os.urandom", lambda n: key[:n])
    source = CipherNoise.fresh()
    from_source(source)
    assert not hasattr(source, "__dict__")
    assert not hasattr(source._keystream, "__dict__")
    shown = [repr(source), str(source), repr(source._keystream), str(dir(source))]
    shown.append(shown_by_the_error(lambda: source.normal((2,), dtype=torch.float16)))
    shown.append(shown_by_the_error(source.__reduce__))
    assert all("self = CipherNoise" in text for text in shown[-2:])  # the locals are in there
    assert not any(holds(key, text) for text in shown)
    reachable = list(everything_reachable(source))
    assert any(item is source._keystream._encryptor for item in reachable)  # the walk does go inside
    buffers = [bytes(item) for item in reachable if isinstance(item, bytes | bytearray | memoryview)]
    assert buffers
    assert not any(key in buffer for buffer in buffers)
    assert not any(holds(key, item) for item in reachable if isinstance(item, str))
