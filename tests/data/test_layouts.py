"""Readers of public layouts, on small files made in those layouts."""

import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from reticent.data import read_cifar100, read_image_folder, read_image_table, read_places, read_svhn
from reticent.data._image_pixels import fitted
from reticent.data._mat5 import read_mat5
from reticent.errors import DataError


def cifar100_rows(count, rng):
    rows = rng.integers(0, 256, (count, 2 + 3072), dtype=np.uint8)
    rows[:, 0], rows[:, 1] = rng.integers(0, 20, count), rng.integers(0, 100, count)
    return rows


def test_cifar100_has_fine_labels_and_planes_first(tmp_path):
    rng = np.random.default_rng(0)
    base = tmp_path / "cifar-100-binary"
    base.mkdir()
    rows = {name: cifar100_rows(n, rng) for name, n in (("train", 7), ("test", 3))}
    for name, r in rows.items():
        (base / f"{name}.bin").write_bytes(r.tobytes())
    train, test = read_cifar100(tmp_path)
    assert (train.x.shape, test.x.shape) == ((7, 32, 32, 3), (3, 32, 32, 3))
    assert train.y.tolist() == rows["train"][:, 1].tolist()
    assert train.x[2, 5, 9, 1] == rows["train"][2, 2 + 1024 + 5 * 32 + 9]  # green plane, row 5, column 9


@pytest.mark.parametrize("damage", ["short", "label", "missing"])
def test_damaged_cifar100_is_refused(tmp_path, damage):
    rows = cifar100_rows(4, np.random.default_rng(0))
    if damage == "label":
        rows[1, 1] = 100
    raw = rows.tobytes()
    (tmp_path / "train.bin").write_bytes(raw[:-1] if damage == "short" else raw)
    if damage != "missing":
        (tmp_path / "test.bin").write_bytes(raw)
    with pytest.raises(DataError, match=r"multiple of|outside|0 times") as e:
        read_cifar100(tmp_path)
    assert e.value.code == "data-format"


def test_svhn_labels_ten_as_zero(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    y = np.array([[1], [10], [9], [5]], dtype=np.uint8)
    for name in ("train", "test"):
        savemat(tmp_path / f"{name}_32x32.mat", {"X": x, "y": y})
    train, test = read_svhn(tmp_path)
    assert train.y.tolist() == test.y.tolist() == [1, 0, 9, 5]
    assert np.array_equal(train.x[3], x[..., 3])


@pytest.mark.parametrize("content", [b"not a matrix", None])
def test_damaged_svhn_is_refused(tmp_path, content):
    if content is None:
        for name in ("train", "test"):
            savemat(tmp_path / f"{name}_32x32.mat", {"X": np.zeros((8, 8, 3, 2), np.uint8), "y": [1, 2]})
    else:
        (tmp_path / "train_32x32.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"MATLAB file|does not hold X"):
        read_svhn(tmp_path)


# -- folders of images --------------------------------------------------------------------------------


def save(path, *, size=(10, 8), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    high, wide = size[1], size[0]
    pixels = np.random.default_rng(seed).integers(0, 256, (high, wide, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for c, name in enumerate(("cat", "dog")):
            for k in range(3):
                save(tmp_path / split / name / f"{k}.png", seed=10 * c + k)
    return tmp_path


def test_a_folder_of_classes_is_read_in_order(folder):
    train, test = read_image_folder(folder, side=8)
    assert (len(train), len(test), train.class_names) == (6, 6, ("cat", "dog"))
    assert [train[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    x, _ = train[4]
    assert (x.shape, x.dtype) == ((8, 8, 3), np.uint8)
    with Image.open(folder / "train" / "dog" / "1.png") as image:
        assert np.array_equal(x, np.array(image)[:, 1:9])  # the middle of 10 x 8


def test_a_truncated_image_is_named_and_counted_or_left_out(folder):
    path = folder / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    (folder / "train" / "cat" / "9.jpg").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"2 of 7 images .*'cat/9.jpg', 'dog/1.png'") as e:
        read_image_folder(folder, side=8)
    assert e.value.code == "image-unreadable"
    train, test = read_image_folder(folder, side=8, unreadable="skip")
    assert (len(train), train.skipped, len(test), test.skipped) == (5, {"unreadable": 2}, 6, {})


def test_mixed_modes_and_sizes_are_refused_left_out_or_converted(folder):
    save(folder / "train" / "cat" / "8.png", mode="L")
    save(folder / "train" / "dog" / "8.png", size=(20, 30))
    with pytest.raises(DataError, match=r"2 of 8 images .*RGB 10 x 8: 6") as e:
        read_image_folder(folder, side=8)
    assert e.value.code == "image-mixed"
    left, _ = read_image_folder(folder, side=8, mixed="skip")
    assert (len(left), left.skipped) == (6, {"mixed": 2})
    every, _ = read_image_folder(folder, side=8, mixed="convert")
    assert len(every) == 8
    assert {every[i][0].shape for i in range(8)} == {(8, 8, 3)}


def test_which_images_are_unusual_is_said_by_the_public_ones(folder):
    """One private image must not decide which others are trained on."""
    for n in range(20):
        save(folder / "train" / "cat" / f"more-{n}.png", size=(20, 30))
    left, _ = read_image_folder(folder, side=8, mixed="skip")
    assert (len(left), left.skipped) == (6, {"mixed": 20})


@pytest.mark.parametrize("linked", ["split", "class", "table"])
def test_private_images_under_another_name_are_not_scored_as_public(folder, linked):
    where = "val/cat" if linked == "class" else "val"
    shutil.rmtree(folder / where)
    (folder / where).symlink_to(folder / where.replace("val", "train"))
    read = read_image_table if linked == "table" else read_image_folder
    with pytest.raises(DataError, match="are one folder: those are the private images") as e:
        read(folder, side=8)
    assert e.value.code == "image-folder"


@pytest.mark.parametrize("size", [(10, 8), (37, 53), (500, 333), (64, 48), (33, 2000), (7, 5), (31, 32)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_middle_is_as_of_the_whole_image_scaled(size, mode):
    """To one level of 255: scaling rounds places in the image to single precision."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, side = Image.fromarray(pixels), 32
    scale = side / min(size)
    wide, high = (max(side, round(n * scale)) for n in size)
    left, top = (wide - side) // 2, (high - side) // 2
    whole = image.convert(mode).resize((wide, high), Image.Resampling.BILINEAR)
    expected = np.array(whole.crop((left, top, left + side, top + side))).astype(int)
    assert np.abs(fitted(image, side, mode) - expected).max() <= 1


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_no_more_of_a_long_image_is_scaled_than_its_middle(monkeypatch, size):
    made, real = [], Image.Image.resize

    def resize(image, size, *args, **named):
        made.append(size)
        return real(image, size, *args, **named) if max(size) < 1000 else image

    monkeypatch.setattr(Image.Image, "resize", resize)
    assert fitted(Image.new("RGB", size, (1, 2, 3)), 224).tolist() == [[[1, 2, 3]] * 224] * 224
    assert made == [(224, 224)]


@pytest.mark.parametrize("layout", ["folder", "table"])
def test_single_private_images_are_not_scored_as_public(folder, layout):
    if layout == "folder":
        (folder / "val" / "cat" / "8.png").symlink_to(folder / "train" / "cat" / "1.png")
        read, number, named = read_image_folder, "1 of 7", "cat/8.png"
    else:
        (folder / "train" / "labels.csv").write_text("file,a\ncat/1.png,1\ndog/1.png,0\n")
        (folder / "val" / "labels.csv").write_text(
            "file,a\ncat/1.png,1\n../train/cat/1.png,1\n../train/dog/1.png,0\n"
        )
        read, number, named = read_image_table, "2 of 3", "cat/1.png"
    with pytest.raises(DataError, match=rf"{number} test images are training images too.*'{named}'") as e:
        read(folder, side=8)
    assert e.value.code == "image-folder"


@pytest.mark.parametrize("where", ["train", "val", "held-out"])
@pytest.mark.parametrize("how", ["symbolic", "hard", "folder"])
def test_a_file_is_one_image_whatever_links_it_has(folder, where, how):
    """Three names of one image would move a sum by three bounds."""
    base = folder / ("train" if where == "held-out" else where)
    if where == "held-out":
        for n in range(12):
            save(base / "dog" / f"more-{n}.png", seed=n)
    for name in ("one.png", "two.png"):
        match how:
            case "symbolic":
                (base / "cat" / name).symlink_to(base / "cat" / "1.png")
            case "hard":
                (base / "cat" / name).hardlink_to(base / "cat" / "1.png")
    if how == "folder":
        (base / "cow").symlink_to(base / "cat")
        other = folder / ("val" if where == "train" else "train") / "cow"
        save(other / "1.png", seed=99)
    with pytest.raises(DataError, match=r"Leave one name of each|training images too") as e:
        read_image_folder(base if where == "held-out" else folder, side=8, hold_out=where == "held-out")
    assert e.value.code == "image-folder"
    if how != "folder" and where == "train":
        assert "2 of" in str(e.value) and "'cat/two.png' = 'cat/" in str(e.value)


def test_hard_links_are_one_image_in_tables_and_over_both_splits(folder):
    (folder / "val" / "cat" / "8.png").hardlink_to(folder / "train" / "cat" / "1.png")
    with pytest.raises(DataError, match=r"1 of 7 test images are training images too.*'cat/8.png'"):
        read_image_folder(folder, side=8)
    (folder / "train" / "cat" / "9.png").hardlink_to(folder / "train" / "cat" / "2.png")
    (folder / "train" / "labels.csv").write_text("file,a\ncat/1.png,1\ncat/2.png,1\n")
    (folder / "val" / "labels.csv").write_text("file,a\ncat/8.png,1\n")
    with pytest.raises(DataError, match=r"1 of 1 test images are training images too.*'cat/8.png'"):
        read_image_table(folder, side=8)
    (folder / "train" / "labels.csv").write_text("file,a\ncat/2.png,1\ncat/9.png,1\n")
    with pytest.raises(DataError, match=r"names 1 files more than once") as e:
        read_image_table(folder, side=8)
    assert e.value.code == "image-table"


@pytest.mark.parametrize("damage", ["empty", "no-test", "other-classes", "one-class", "no-train"])
def test_folders_that_are_no_classes_are_refused(folder, damage):
    match damage:
        case "empty":
            (folder / "train" / "eel").mkdir()
        case "no-test":
            shutil.rmtree(folder / "val")
        case "other-classes":
            (folder / "val" / "dog").rename(folder / "val" / "cow")
        case "one-class":
            for split in ("train", "val"):
                shutil.rmtree(folder / split / "dog")
        case "no-train":
            shutil.rmtree(folder / "train")
    with pytest.raises(DataError, match=r"eel|to score on|same class folders|no folder 'train'") as e:
        read_image_folder(folder, side=8)
    assert e.value.code == "image-folder"


def test_of_class_folders_alone_a_tenth_is_held_out_by_place(tmp_path):
    for c, name in enumerate(("cat", "dog")):
        for k in range(20):
            save(tmp_path / name / f"{k:02}.png", seed=20 * c + k, mode="L" if k == 3 else "RGB")
    with pytest.raises(DataError, match="no folder 'train'"):
        read_image_folder(tmp_path, side=8, mixed="convert")
    train, test = read_image_folder(tmp_path, side=8, mixed="convert", hold_out=True)
    assert (len(train), len(test), train.class_names) == (36, 4, ("cat", "dog"))
    assert train.converted + test.converted == 2
    seen = {x.tobytes() for x, _ in [*map(train.__getitem__, range(36)), *map(test.__getitem__, range(4))]}
    assert len(seen) == 40  # every image in one of them
    held = [path.name for path, _ in test._files]
    for k in range(20):
        save(tmp_path / "cat" / f"{k:02}.png", seed=100 + k)  # what they show has no say
    assert [
        path.name for path, _ in read_image_folder(tmp_path, side=8, mixed="convert", hold_out=True)[1]._files
    ] == held


@pytest.mark.parametrize("damage", ["one-class", "few", "empty", "missing"])
def test_class_folders_from_which_nothing_can_be_held_out_are_refused(tmp_path, damage):
    for name in ("cat", "dog"):
        for k in range(1 if damage == "few" else 10):
            save(tmp_path / "images" / name / f"{k}.png")
    place = tmp_path / "images"
    match damage:
        case "one-class":
            (place / "dog").rename(tmp_path / "elsewhere")
        case "empty":
            (place / "eel").mkdir()
        case "missing":
            place = tmp_path / "nothing"
    with pytest.raises(DataError, match=r"ten or more in two|eel|There is no folder") as e:
        read_image_folder(place, side=8, hold_out=True)
    assert e.value.code == "image-folder"


# -- tables of images with several labels -------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        lines = ["file,cat,dog"]
        for k in range(count):
            save(tmp_path / split / f"{k}.png", seed=k)
            lines.append(f"{k}.png,{int(k == 0)},{k % 2}")
        (tmp_path / split / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_table_gives_each_image_a_row_of_labels(table):
    train, test = read_image_table(table, side=8)
    assert (len(train), len(test), train.class_names) == (3, 2, ("cat", "dog"))
    assert train.labels.tolist() == [[1, 0], [0, 1], [0, 0]]
    x, y = train[1]
    assert (x.shape, y.tolist()) == ((8, 8, 3), [0, 1])
    (table / "train" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 3 images"):
        read_image_table(table, side=8)
    assert len(read_image_table(table, side=8, unreadable="skip")[0]) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read"),
        ("", "must begin with"),
        ("name,cat,dog\n0.png,1,0\n", "must begin with"),
        ("file,cat,cat\n0.png,1,0\n", "names a label twice"),
        ("file,cat,dog\n0.png,1\n1.png,1,2\n", "has 2 lines"),
        ("file,cat,dog\n0.png,1,0\n./0.png,1,0\n", "1 files more than once"),
        ("file,cat,dog\n0.png,1,0\n8.png,1,0\n", "1 files that are not there, e.g. '8.png'"),
        ("file,cat,cow\n0.png,1,0\n", "same labels"),
    ],
)
def test_a_table_that_is_none_is_refused(table, text, why):
    path = table / "train" / "labels.csv"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=why) as e:
        read_image_table(table, side=8)
    assert e.value.code == "image-table"


# -- Places365 ----------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path):
    (tmp_path / "categories_places365.txt").write_text("/a/airfield 0\n/b/barn/outdoor 1\n")
    train, val = [], []
    for k, (name, label) in enumerate((("/b/barn/outdoor", 1), ("/a/airfield", 0), ("/b/barn/outdoor", 1))):
        save(tmp_path / "data_256" / name[1:] / f"{k:08}.jpg", size=(8, 8), seed=k)
        save(tmp_path / "val_256" / f"Places365_val_{k:08}.jpg", size=(8, 8), seed=9 + k)
        train.append(f"{name}/{k:08}.jpg {label}")
        val.append(f"Places365_val_{k:08}.jpg {label}")
    (tmp_path / "places365_train_standard.txt").write_text("\n".join(train) + "\n")
    (tmp_path / "places365_val.txt").write_text("\n".join(val) + "\n")
    return tmp_path


def test_places_are_labelled_by_their_lists(places):
    train, test = read_places(places, side=8)
    assert train.class_names == test.class_names == ("airfield", "barn/outdoor")
    assert train.labels.tolist() == test.labels.tolist() == [1, 0, 1]
    with Image.open(places / "data_256" / "a" / "airfield" / "00000001.jpg") as image:
        assert np.array_equal(train[1][0], np.array(image))
    (places / "data_256" / "a" / "airfield" / "00000001.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 3 images .*'airfield/00000001.jpg'"):
        read_places(places, side=8)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "must hold one list of training images"),
        ("", "has 0 of 0 lines"),
        ("/a/airfield/00000001.jpg\n", "has 1 of 1 lines"),
        ("/a/airfield/00000001.jpg -1\n", "has 1 of 1 lines"),
        ("/a/airfield/00000001.jpg 2\n", "1 labels beyond its 2 classes"),
        ("/a/airfield/00000001.jpg 0\n/a/./airfield/00000001.jpg 0\n", "1 files more than once"),
        ("/a/airfield/00000007.jpg 0\n", "1 files that are not in 'data_256', e.g. '00000007.jpg'"),
        ("/a/a\0b.jpg 0\n", "can be no file"),
    ],
)
def test_lists_of_places_that_are_none_are_refused(places, text, why):
    path = places / "places365_train_standard.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=why) as e:
        read_places(places, side=8)
    assert e.value.code == "image-table"


@pytest.mark.parametrize("damage", ["numbers", "no images", "one folder"])
def test_places_without_their_folders_or_classes_are_refused(places, damage):
    match damage:
        case "numbers":
            (places / "categories_places365.txt").write_text("/a/airfield 0\n/b/barn 2\n")
        case "no images":
            shutil.rmtree(places / "data_256")
        case "one folder":
            shutil.rmtree(places / "val_256")
            (places / "val_256").symlink_to(places / "data_256")
    with pytest.raises(DataError, match=r"must number|must hold one folder|are one folder") as e:
        read_places(places, side=8)
    assert e.value.code == ("image-table" if damage == "numbers" else "image-folder")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "f4", "f8"])
def test_arrays_of_a_matlab_file_are_those_that_scipy_wrote(tmp_path, compressed, dtype):
    x = np.random.default_rng(0).integers(0, 100, (3, 2, 5)).astype(dtype)
    savemat(tmp_path / "a.mat", {"x": x, "y": np.arange(4.0), "s": "text"}, do_compression=compressed)
    found = read_mat5(tmp_path / "a.mat")
    assert found.keys() == {"x", "y"}
    np.testing.assert_array_equal(found["x"], x)
    assert found["x"].dtype == x.dtype
    np.testing.assert_array_equal(found["y"], [[0.0, 1.0, 2.0, 3.0]])


def test_a_damaged_matlab_file_is_refused_and_never_read_beyond_its_end(tmp_path):
    savemat(tmp_path / "a.mat", {"x": np.arange(12).reshape(3, 4)})
    whole = (tmp_path / "a.mat").read_bytes()
    draw = np.random.default_rng(1)
    refused = 0
    for _ in range(2000):
        data = bytearray(whole[: draw.integers(100, len(whole) + 1)])
        for at in draw.integers(0, len(data), 2):
            data[at] = draw.integers(0, 256)
        (tmp_path / "b.mat").write_bytes(data)
        try:
            read_mat5(tmp_path / "b.mat")
        except ValueError:
            refused += 1
    assert 1000 < refused < 2000


@pytest.mark.parametrize("name", ["a\0b.png", "a" * 5000 + ".png"], ids=["null byte", "too long"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "labels.csv").write_text(f"file,cat\n{name},1\n")
    with pytest.raises(DataError) as caught:
        read_image_table(tmp_path, side=8)
    assert caught.value.code == "image-table"
