"""SampleStream: operating-system entropy for every draw, and nothing to steal, copy or repeat."""

import copy
import pickle

import numpy as np
import pytest

from reticent.errors import ConfigError, StepError
from reticent.sample import SampleStream

STREAMS = pytest.mark.parametrize(
    "stream", [SampleStream.fresh(), SampleStream.reproducible(1)], ids=["fresh", "reproducible"]
)


def test_every_draw_is_keyed_with_at_least_128_fresh_bits(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr("os.urandom", lambda n: asked.append(n) or bytes([len(asked)] * n))
    stream = SampleStream.fresh()
    first, second = stream.generator(), stream.generator()
    assert asked == [48, 48]
    for generator, byte in ((first, 1), (second, 2)):
        state = generator.bit_generator.state["state"]
        word = int.from_bytes(bytes([byte] * 8))
        assert state["key"].tolist() == [word] * 2
        assert state["counter"].tolist() == [word] * 4


def test_every_bit_of_the_operating_systems_entropy_matters(monkeypatch):
    outputs = []
    for bit in range(-1, 48 * 8):
        value = (1 << bit if bit >= 0 else 0).to_bytes(48)
        monkeypatch.setattr("os.urandom", lambda n, value=value: value[:n])
        outputs.append(SampleStream.fresh().generator().random(8))
    drawn = np.array(outputs)
    # A counter's lowest words shift the stream, so compare blocks of one position: all must differ.
    assert all(len(np.unique(column)) == len(outputs) for column in drawn.T)


def test_a_fresh_stream_holds_no_state_but_its_kind():
    stream = SampleStream.fresh()
    stream.generator()
    assert stream.private
    assert (stream._seed, stream._next) == (None, 0)
    assert repr(stream) == "SampleStream(private=True)"


def test_the_reproducible_stream_says_that_it_is_not_private():
    assert not SampleStream.reproducible(0).private
    assert repr(SampleStream.reproducible(12345)) == "SampleStream(private=False)"


@STREAMS
@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_copies_and_pickles_are_refused(stream, take):
    with pytest.raises(StepError, match=r"cannot be copied, pickled or saved.*\[stream-copied\]"):
        take(stream)


@pytest.mark.parametrize(("seed", "start"), [(True, 0), (0, False), (0, -1)])
def test_seed_and_start_are_checked(seed, start):
    with pytest.raises(ConfigError, match=r"\[seed\]"):
        SampleStream.reproducible(seed, start=start)
