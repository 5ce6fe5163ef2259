"""A feature store: nothing lost when it is interrupted, nothing taken that does not belong in it."""

import dataclasses
import errno
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from reticent.errors import DataError
from reticent.recipes.features import Fingerprint, Shape, StoreWriter, open_store
from reticent.recipes.features import _store as store_module
from reticent.recipes.features._rows import raw_blocks

FINGERPRINT = Fingerprint(
    model="m", weights="0" * 64, preprocess={"size": 112}, data="toy", data_sha256="1" * 64
)
SHAPE = Shape(num_rows={"train": 10, "test": 4}, dim=3, precision="float32", class_names=("a", "b"))
X = np.arange(42, dtype=np.float32).reshape(14, 3)
Y = np.arange(14) % 2


def begin(path, *, fingerprint=FINGERPRINT, shape=SHAPE):
    return StoreWriter.begin(path, fingerprint=fingerprint, shape=shape)


def fill(path, **how):
    with begin(path, **how) as writer:
        for split, x, y in (("train", X[:10], Y[:10]), ("test", X[10:], Y[10:])):
            for start in range(writer.num_done(split), len(x), 4):
                writer.append(split, x[start : start + 4])
            writer.put_labels(split, y)
        return writer.finish()


def refused(code, text=""):
    return pytest.raises(DataError, match=rf"(?s){text}.*\[{code}\]")


def test_what_was_written_is_read(tmp_path):
    store = fill(tmp_path / "s")
    store.verify()
    for split, x, y in (("train", X[:10], Y[:10]), ("test", X[10:], Y[10:])):
        found = store.split(split)
        np.testing.assert_array_equal(found.x, x)
        np.testing.assert_array_equal(found.y, y)
        assert "[[" not in repr(found)
    assert np.load(tmp_path / "s" / "train.features.npy").shape == (10, 3)  # anyone can read it


def test_float16_halves_the_file_and_keeps_the_values(tmp_path):
    store = fill(tmp_path / "s", shape=dataclasses.replace(SHAPE, precision="float16"))
    assert store.split("train").x.dtype == np.float16
    blocks = [x.clone() for x, _ in raw_blocks(store.split("train"), block_rows=4)]  # they share memory
    assert [len(x) for x in blocks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), X[:10])
    (x, y), *_ = raw_blocks(store.split("train"), block_rows=8, indices=np.array([1, 5, 9]))
    np.testing.assert_array_equal(x, X[[1, 5, 9]])
    np.testing.assert_array_equal(y, Y[[1, 5, 9]])


def test_an_interrupted_store_goes_on_where_it_was(tmp_path):
    with begin(tmp_path / "s") as writer:
        writer.append("train", X[:4])
    with refused("store-incomplete", "train 4 of 10"):
        open_store(tmp_path / "s")
    with begin(tmp_path / "s") as writer:
        assert (writer.num_done("train"), writer.complete) == (4, False)
        with refused("store-incomplete"):
            writer.finish()
    np.testing.assert_array_equal(fill(tmp_path / "s").split("train").x, X[:10])
    with begin(tmp_path / "s") as writer:
        assert writer.complete


def test_rows_that_were_written_but_not_counted_are_written_again(tmp_path, monkeypatch):
    with begin(tmp_path / "s") as writer:
        writer.append("train", X[:4])

        def killed(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(store_module, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.append("train", -X[4:8])
        monkeypatch.undo()
    assert fill(tmp_path / "s").split("train").x[4:8].tolist() == X[4:8].tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_are_refused(tmp_path, value):
    bad = X[:4].copy()
    bad[2, 1] = value
    with begin(tmp_path / "s") as writer:
        with refused("store-values", "rows 0 to 3.*NaN or infinity"):
            writer.append("train", bad)
        assert writer.num_done("train") == 0
        writer.append("train", X[:4])  # nothing is lost


def test_features_too_large_for_float16_are_refused(tmp_path):
    with begin(tmp_path / "s", shape=dataclasses.replace(SHAPE, precision="float16")) as writer:
        with refused("store-values", "too large for float16.*float32"):
            writer.append("train", X[:4] * 1e5)


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_out_of_range_are_refused(tmp_path, label):
    bad = Y[:10].copy()
    bad[3] = label
    with begin(tmp_path / "s") as writer, refused("data-labels", "integers from 0 to 1"):
        writer.put_labels("train", bad)
    fill(tmp_path / "t")
    np.save(tmp_path / "t" / "train.labels.npy", bad)
    with refused("data-labels"):
        open_store(tmp_path / "t").split("train")


def test_labels_that_are_no_integers_and_rows_that_do_not_fit_are_refused(tmp_path):
    with begin(tmp_path / "s") as writer:
        with refused("data-labels"):
            writer.put_labels("train", Y[:10].astype(np.float64))
        with refused("data-shape", "has 10 rows"):
            writer.put_labels("train", Y)
        with refused("data-shape", "10 rows of 3 features are left"):
            writer.append("train", X)
        with refused("data-shape"):
            writer.append("train", X[:4, :2])


@pytest.mark.parametrize("change", [{"model": "other"}, {"weights": "2" * 64}, {"preprocess": {"size": 96}}])
def test_a_store_of_another_model_is_refused(tmp_path, change):
    fill(tmp_path / "s")
    other = dataclasses.replace(FINGERPRINT, **change)
    (name,) = change
    with refused("store-fingerprint", f"{name} differ"):
        open_store(tmp_path / "s", expected=other)
    with refused("store-fingerprint"):
        begin(tmp_path / "s", fingerprint=other)
    with refused("store-fingerprint", "precision"):
        begin(tmp_path / "s", shape=dataclasses.replace(SHAPE, precision="float16"))
    open_store(tmp_path / "s", expected=FINGERPRINT)


def test_a_second_writer_and_a_foreign_folder_are_refused(tmp_path):
    with begin(tmp_path / "s"), refused("store-locked"):
        begin(tmp_path / "s")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "thesis.txt").write_text("mine")
    with refused("store-exists"):
        begin(tmp_path / "f")
    assert (tmp_path / "f" / "thesis.txt").read_text() == "mine"


def test_a_missing_or_damaged_store_is_refused(tmp_path):
    with refused("store-missing", "reticent features extract"):
        open_store(tmp_path / "nowhere")
    fill(tmp_path / "s")
    path = tmp_path / "s" / "train.features.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with refused("store-damaged", "not the file that was written"):
        open_store(tmp_path / "s").verify()
    path.write_bytes(whole[:-8])
    with refused("store-damaged"):
        open_store(tmp_path / "s").split("train")
    for content in (b"", b"PK\3\4 nothing"):
        path.write_bytes(content)
        with refused("store-damaged", "cannot be read"):
            open_store(tmp_path / "s").split("train")
    with path.open("wb") as stream:
        np.savez(stream, X)
    with refused("store-damaged", "cannot be read"):
        open_store(tmp_path / "s").split("train")
    index = tmp_path / "s" / "store.json"
    index.write_text(index.read_text()[:40])
    with refused("store-damaged"):
        open_store(tmp_path / "s")


def test_a_full_disk_is_noticed_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with refused("store-disk", "No space left"):
        begin(tmp_path / "s")
    monkeypatch.undo()
    fill(tmp_path / "s")  # the same command again, once there is room


def test_a_disk_that_fills_later_loses_no_counted_row(tmp_path, monkeypatch):
    with begin(tmp_path / "s") as writer:
        writer.append("train", X[:4])

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with refused("store-disk", "run the same command again"):
            writer.append("train", X[4:8])
        monkeypatch.undo()
    assert json.loads((tmp_path / "s" / "store.json").read_text())["done"]["train"] == 4
    fill(tmp_path / "s").verify()


def test_the_system_s_own_limit_on_files_is_met_with_a_clear_error(tmp_path):
    """No stand-in: the kernel refuses to make a file of that length."""
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from tests.recipes.features.test_store import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "big = dataclasses.replace(SHAPE, num_rows={'train': 1 << 20, 'test': 4})\n"
        "try: begin(sys.argv[1], shape=big)\n"
        "except DataError as e: print(e.code)\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "s"), *sys.path]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "store-disk"
    assert resource  # used by the script
