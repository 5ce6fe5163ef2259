"""What fuzzing found: input that ended in Python's own errors is refused with a code."""

import gzip
import zipfile

import pytest

from reticent.account.ledger import read_ledger
from reticent.clipping import FlatClipping
from reticent.data._archive import unpack
from reticent.data._images import read_idx
from reticent.errors import ConfigError, DataError, LedgerError
from reticent.recipes._config import parse_settings, read_toml
from reticent.records import Budget, Mechanism
from reticent.report import read_run
from reticent.sample import FullBatchSampler, PoissonSampler
from reticent.train import read_run as read_description

DEEP = b"[" * 100_000


def test_deep_nesting_is_damage_and_no_crash(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_bytes(DEEP + b"\n")
    with pytest.raises(LedgerError, match="Line 1"):
        read_ledger(ledger)
    (tmp_path / "run.json").write_bytes(DEEP)
    for read in (read_run, read_description):
        with pytest.raises(ConfigError):
            read(tmp_path)
    (tmp_path / "a.toml").write_bytes(b"x = " + DEEP)
    with pytest.raises(ConfigError, match="Cannot read"):
        read_toml(tmp_path / "a.toml")
    assert parse_settings(["x=" + DEEP.decode()])["x"].startswith("[[")


@pytest.mark.parametrize("cut", [5, 15])
def test_a_damaged_gzip_file_is_refused(tmp_path, cut):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(1000))[:cut])
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_idx(path)


def test_an_unknown_compression_is_refused(tmp_path):
    path, out = tmp_path / "a.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a.txt", "hello")
    data = bytearray(path.read_bytes())
    for header, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = data.index(header) + offset
        data[at : at + 2] = (77).to_bytes(2, "little")
    path.write_bytes(bytes(data))
    out.mkdir()
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(path, out)


HUGE = 10**400


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mechanism(scheme="poisson", sampling_prob=HUGE, noise_multiplier=1.0),
        lambda: Mechanism(scheme="poisson", sampling_prob=0.1, noise_multiplier=HUGE),
        lambda: Mechanism(scheme="dice", sampling_prob=0.1, noise_multiplier=1.0),
        lambda: Budget(epsilon=HUGE, delta=1e-5),
        lambda: Budget(epsilon=1.0, delta=HUGE),
        lambda: FlatClipping(max_norm=HUGE),
        lambda: PoissonSampler(num_examples=HUGE, expected_batch_size=1),
        lambda: PoissonSampler(num_examples=10, expected_batch_size=HUGE),
        lambda: FullBatchSampler(num_examples=HUGE),
    ],
)
def test_numbers_that_no_float_holds_and_schemes_that_are_none_are_refused(make):
    with pytest.raises(ConfigError):
        make()
