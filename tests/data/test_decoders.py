"""Decoders and checksums: each format to the same arrays, and a wrong byte never unnoticed."""

import json
import sys
from struct import pack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reticent import data
from reticent.data import arrays_sha256
from reticent.data._digits import decode_digits, held_out_rows
from reticent.data._images import decode_cifar10_binary, decode_cifar10_sheets, read_idx
from reticent.data._table import TABLE
from reticent.errors import DataError


def test_the_checksum_notices_any_flipped_byte_and_any_changed_label():
    arrays = {"x": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "y": np.array([0, 1])}
    right = arrays_sha256(arrays)
    for name, array in arrays.items():
        for place in range(array.nbytes):
            changed = array.copy()
            changed.view(np.uint8).reshape(-1)[place] ^= 1
            assert arrays_sha256({**arrays, name: changed}) != right


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.zeros((2, 3), np.uint8)},
        {"x": np.zeros(6, np.int8)},
        {"y": np.zeros(6, np.uint8)},
        {"x": np.zeros(6, np.uint8), "y": np.zeros(0)},
    ],
)
def test_the_checksum_covers_shape_dtype_and_name(other):
    assert arrays_sha256(other) != arrays_sha256({"x": np.zeros(6, np.uint8)})


def test_the_checksum_does_not_depend_on_order_layout_or_byte_order():
    x, y = np.arange(6).reshape(2, 3), np.arange(3)
    right = arrays_sha256({"x": x, "y": y})
    assert arrays_sha256({"y": y.astype(">i8"), "x": np.asfortranarray(x)}) == right


@pytest.mark.parametrize("shape", [(3,), (2, 4, 5), (0,), (0, 4, 5)])
def test_idx_files_keep_shape_and_values(tmp_path, made, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / "file"
    path.write_bytes(made.idx_bytes(array))
    np.testing.assert_array_equal(read_idx(path), array)


@given(cut=st.integers(0, 31))
def test_an_idx_file_cut_anywhere_is_refused(tmp_path_factory, cut):
    whole = b"\0\0\x08\x02" + pack(">2I", 4, 5) + bytes(20)
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"IDX file of bytes|but holds") as caught:
        read_idx(path)
    assert caught.value.code == "data-format"


@pytest.mark.parametrize("shape", [(2**31, 2**31, 4), (0, 2**31, 2**31, 4), (1,) * 70])
def test_a_shape_that_no_array_can_have_is_refused(tmp_path, shape):
    """The first one has 2**64 values: none, to whoever counts in 64 bits."""
    path = tmp_path / "file"
    path.write_bytes(b"\0\0\x08" + bytes([len(shape)]) + pack(f">{len(shape)}I", *shape))
    with pytest.raises(DataError, match=r"IDX file of bytes|but holds") as caught:
        read_idx(path)
    assert caught.value.code == "data-format"


@pytest.fixture
def cifar(tmp_path):
    """Two random images a batch, written in both formats."""
    from PIL import Image

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 12)
    binary, sheets = tmp_path / "b" / "cifar-10-batches-bin", tmp_path / "s" / "package"
    binary.mkdir(parents=True)
    sheets.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        x, y = images[2 * i : 2 * i + 2], labels[2 * i : 2 * i + 2]
        rows = [
            bytes([int(label)]) + image.transpose(2, 0, 1).tobytes()
            for image, label in zip(x, y, strict=True)
        ]
        (binary / f"{name}.bin").write_bytes(b"".join(rows))
        Image.fromarray(x.reshape(2, 1024, 3)).save(sheets / f"{name}.png")
    (sheets / "train_lables.json").write_text(json.dumps(labels[:10].tolist()))
    (sheets / "test_lables.json").write_text(json.dumps(labels[10:].tolist()))
    return tmp_path, images, labels


@pytest.mark.parametrize(("decode", "folder"), [(decode_cifar10_binary, "b"), (decode_cifar10_sheets, "s")])
def test_both_forms_of_cifar10_decode_to_the_same_images(cifar, decode, folder):
    root, images, labels = cifar
    arrays = decode((root / folder,))
    np.testing.assert_array_equal(arrays["train_x"], images[:10])
    np.testing.assert_array_equal(arrays["test_x"], images[10:])
    np.testing.assert_array_equal(np.concatenate([arrays["train_y"], arrays["test_y"]]), labels)
    assert arrays["train_y"].dtype == np.int64


def test_a_cifar10_batch_cut_short_is_refused(cifar):
    path = cifar[0] / "b" / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin has 6145 bytes, not a multiple of 3073"):
        decode_cifar10_binary((cifar[0] / "b",))


@pytest.mark.parametrize("module", ["PIL", "sklearn.datasets"])
def test_a_missing_package_is_named_with_its_cure(cifar, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    decode = {"PIL": decode_cifar10_sheets, "sklearn.datasets": decode_digits}[module]
    with pytest.raises(DataError, match=r"pip install (pillow|scikit-learn)") as caught:
        decode((cifar[0] / "s",))
    assert caught.value.code == "data-needs-package"


def test_a_damaged_sheet_is_refused(cifar):
    path = cifar[0] / "s" / "package" / "test_batch.png"
    content = bytearray(path.read_bytes())
    content[45] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises((DataError, OSError)):
        decode_cifar10_sheets((cifar[0] / "s",))


# ---- digits --------------------------------------------------------------------------------------


def test_digits_always_load_and_touch_no_cache(tmp_path, said):
    digits = data.load("digits", cache_dir=tmp_path / "cache", report=said.append)
    assert digits.train.x.shape == (1437, 8, 8)
    assert digits.test.x.shape == (360, 8, 8)
    assert digits.train.x.dtype == np.uint8
    assert digits.train.y.dtype == np.int64
    assert digits.train.x.max() == 16
    assert np.bincount(digits.test.y, minlength=10).min() >= 30
    assert said == []
    assert not (tmp_path / "cache").exists()


def test_the_digits_split_is_fixed_for_ever():
    rows = held_out_rows()
    assert len(set(rows.tolist())) == 360
    assert rows[:8].tolist() == [8, 9, 39, 46, 49, 50, 51, 53]
    assert TABLE["digits"].sha256 == "0a866c5185a7deabcce59a8c9e5ca0b9e36a6ba9a889a17eb0f292b9cb3ca6b3"


def test_the_digits_splits_together_are_the_whole_set_once():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    digits = data.load("digits")
    ours = np.concatenate([digits.train.x, digits.test.x]).reshape(-1, 64)
    ours = np.column_stack([ours, np.concatenate([digits.train.y, digits.test.y])])
    theirs = np.column_stack([images.astype(int), labels])
    np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))
    assert len(ours) == len(theirs)


# ---- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_entry_is_pinned_licensed_and_cited(name):
    entry = TABLE[name]
    assert len(entry.sha256) == 64
    assert entry.licence and entry.citation and len(entry.class_names) >= 2
    for route in entry.routes:
        assert route.package_licence
        for source in route.sources:
            assert source.version
            for file in source.files:
                assert len(file.sha256) == 64 and file.size > 0
                assert file.url.startswith("https://") == (source.kind == "https")


# One package each; no other place is known that serves the same data in a form that is read here.
SINGLE = {"kdd-census", "rotten-tomatoes", "spam-assassin", "brown"}


def test_every_data_set_that_is_fetched_has_more_than_one_kind_of_source_or_is_known_not_to():
    for name, entry in TABLE.items():
        kinds = set().union(*(route.kinds for route in entry.routes))
        assert kinds == {"embedded"} or (len(kinds) >= 2) == (name not in SINGLE)
