"""Files of every mode to bytes: transparency, 16 and 32 bits, orientation, and what cannot be read."""

import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from reticent.data import read_image_files, read_image_folder
from reticent.data._image_pixels import fitted, opened
from reticent.errors import DataError

SIDE = 8


def noise(*shape, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def read(path, mode="RGB"):
    return fitted(opened(path), SIDE, mode)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("1", "png"), ("L", "png"), ("P", "gif"), ("RGB", "bmp"), ("CMYK", "tif"), ("YCbCr", "tif")],
)
def test_opaque_modes_are_what_pillow_makes_of_them(tmp_path, mode, ending):
    image = Image.fromarray(noise(SIDE, SIDE, 3)).convert(mode)
    image.save(tmp_path / f"a.{ending}")
    with Image.open(tmp_path / f"a.{ending}") as kept:
        assert kept.mode == mode
        expected = np.array(kept.convert("RGB"))
    found = read(tmp_path / f"a.{ending}")
    assert np.array_equal(found, expected) and len(np.unique(found)) > 1
    near = np.array(image.convert("RGB")).astype(int)
    assert np.abs(found - near).max() <= 2  # of YCbCr's rounding


def over_white(rgb, alpha):
    share = alpha[..., None] / 255.0
    return rgb * share + 255.0 * (1.0 - share)


@pytest.mark.parametrize(("mode", "ending"), [("RGBA", "png"), ("LA", "png"), ("PA", "tif")])
def test_transparent_pixels_are_composed_over_white(tmp_path, mode, ending):
    rgba = noise(SIDE, SIDE, 4)
    rgba[:2, :, 3], rgba[2:4, :, 3] = 0, 255
    grey = Image.fromarray(rgba[..., 0])
    image = Image.fromarray(rgba)
    if mode == "LA":
        image = Image.merge("LA", (grey, Image.fromarray(rgba[..., 3])))
    elif mode == "PA":
        image = Image.frombytes("PA", (SIDE, SIDE), rgba[..., [0, 3]].tobytes())
        image.putpalette([level for level in range(256) for _ in range(3)])
    image.save(tmp_path / f"a.{ending}")
    with Image.open(tmp_path / f"a.{ending}") as kept:
        assert kept.mode == mode
    colours = rgba[..., :3] if mode == "RGBA" else np.repeat(rgba[..., :1], 3, 2)
    found, expected = read(tmp_path / f"a.{ending}"), over_white(colours.astype(float), rgba[..., 3])
    assert (found[:2] == 255).all()  # whatever colour is hidden there
    assert np.array_equal(found[2:4], colours[2:4])
    assert np.abs(found - expected).max() <= 1
    assert (read(tmp_path / f"a.{ending}", "L")[:2] == 255).all()


def test_one_transparent_colour_is_white_whatever_the_mode(tmp_path):
    palette = Image.new("P", (SIDE, SIDE))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    Image.new("L", (SIDE, SIDE), 7).save(tmp_path / "l.png", transparency=7)
    Image.fromarray(np.full((SIDE, SIDE), 4096, np.uint16)).save(tmp_path / "i.png", transparency=4096)
    found = read(tmp_path / "p.png")
    assert found[0, 1].tolist() == [40, 50, 60] and found[0, 0].tolist() == [255, 255, 255]
    assert (read(tmp_path / "l.png") == 255).all() and (read(tmp_path / "i.png") == 255).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big.tif", "a.pgm"])
def test_sixteen_bits_of_grey_become_eight_over_the_whole_range(tmp_path, name):
    values = noise(SIDE, SIDE, high=65536, dtype=np.uint16)
    values[0, :3] = 0, 257, 65535
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values.astype(">u2") if name == "big.tif" else values).save(tmp_path / name)
    found = read(tmp_path / name)
    assert np.array_equal(found, np.repeat(np.round(values / 257.0)[..., None], 3, 2))
    assert found[0, :3, 0].tolist() == [0, 1, 255]
    assert np.array_equal(read(tmp_path / name, "L"), found[..., 0])


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_an_image_is_turned_as_its_exif_says(tmp_path, turn, ending):
    """The corner that is stored top left is seen where the standard's table puts it."""
    pixels = np.full((16, 24), 200, np.uint8)
    pixels[:8, :8] = 0
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}", exif=exif)
    image = opened(tmp_path / f"a.{ending}")
    assert image.size == ((24, 16) if turn < 5 else (16, 24))
    seen = np.array(image) < 100
    top, left = bool(seen[: image.height // 2].any()), bool(seen[:, : image.width // 2].any())
    where = {1: (1, 1), 2: (1, 0), 3: (0, 0), 4: (0, 1), 5: (1, 1), 6: (1, 0), 7: (0, 0), 8: (0, 1)}
    assert (top, left) == where[turn]
    with (tmp_path / f"a.{ending}").open("rb") as stream, Image.open(stream) as stored:
        assert np.array_equal(np.array(image), np.array(ImageOps.exif_transpose(stored)))


def test_a_turned_image_keeps_its_transparent_colour(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("L", (SIDE, SIDE), 7).save(tmp_path / "a.png", transparency=7, exif=exif)
    assert (read(tmp_path / "a.png") == 255).all()


@pytest.mark.parametrize(
    "damage", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01", b"Exif\0\0II*\0"]
)
def test_an_image_whose_exif_is_damaged_is_read_as_it_is_stored(tmp_path, damage):
    Image.fromarray(noise(SIDE, SIDE, 3)).save(tmp_path / "a.png", exif=damage)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read(tmp_path / "a.png"), noise(SIDE, SIDE, 3))


# -- where the reader tells of them --------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(3):
                Image.fromarray(noise(SIDE, SIDE, 3)).save(tmp_path / split / name / f"{k}.png")
    return tmp_path


def test_thirty_two_bits_a_channel_are_unreadable_and_say_why(folder):
    Image.fromarray(noise(SIDE, SIDE).astype(np.int32)).save(folder / "train" / "cat" / "i.tif")
    Image.fromarray(noise(SIDE, SIDE).astype(np.float32)).save(folder / "train" / "dog" / "f.tif")
    (folder / "train" / "dog" / "g.png").write_bytes(b"no image")
    with pytest.raises(
        DataError,
        match=r"3 of 9 images .*32 bits a channel: 2, 'cat/i.tif', 'dog/f.tif'; cut short .*: 1, 'dog/g.png'",
    ) as e:
        read_image_folder(folder, side=SIDE)
    assert e.value.code == "image-unreadable"
    train, _ = read_image_folder(folder, side=SIDE, unreadable="skip")
    assert (len(train), train.skipped) == (6, {"unreadable": 3})
    assert train.unusual["unreadable"][:2] == [f"{n} (32 bits a channel)" for n in ("cat/i.tif", "dog/f.tif")]
    assert "i.tif" not in repr(train)  # a record may be published
    with pytest.raises(DataError, match=r"1 of 1 images .*32 bits a channel: 1, 'i.tif'"):
        read_image_files(folder / "train" / "cat" / "i.tif", side=SIDE, class_names=["cat", "dog"])
    with pytest.raises(DataError, match="32 bits a channel") as e:
        read(folder / "train" / "dog" / "f.tif")
    assert e.value.code == "image-unreadable"


@pytest.mark.parametrize("limit", [SIDE * SIDE - 1, SIDE * SIDE // 2 - 1])  # Pillow warns, and raises
def test_an_image_above_pillows_limit_says_so(folder, monkeypatch, limit):
    Image.fromarray(noise(SIDE, SIDE, 3)).save(folder / "train" / "cat" / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=rf"more than {limit} pixels.*save it smaller.*MAX_IMAGE_PIXELS") as e:
        read_image_folder(folder, side=SIDE)
    assert e.value.code == "image-unreadable" and "cut short" not in str(e.value)
    with pytest.raises(DataError, match=rf"'cat/0.png' has more than {limit} pixels"):
        opened(folder / "train" / "cat" / "0.png")


def test_an_error_of_a_decoder_is_an_unreadable_image(tmp_path, monkeypatch):
    """As of a damaged AVIF under another name."""
    Image.fromarray(noise(SIDE, SIDE, 3)).save(tmp_path / "a.png")

    def fails(*_):
        raise RuntimeError("Failed to decode image: Missing or empty image item")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fails)
    with pytest.raises(DataError, match="cannot be decoded") as e:
        opened(tmp_path / "a.png")
    assert e.value.code == "image-unreadable"


def test_a_conversion_that_fails_is_found_before_training(folder, monkeypatch):
    Image.new("LAB", (SIDE, SIDE)).save(folder / "train" / "cat" / "lab.tif")
    real = Image.Image.convert

    def convert(image, mode=None, *args, **named):
        if image.mode == "LAB":
            raise ValueError("conversion not supported")
        return real(image, mode, *args, **named)

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(DataError, match=r"1 of 7 images .*mode LAB.*'cat/lab.tif'") as e:
        read_image_folder(folder, side=SIDE, mixed="convert")
    assert e.value.code == "image-unreadable"


def test_unlike_images_are_named_three_at_most(folder):
    for k in range(4):
        Image.fromarray(noise(SIDE, SIDE)).save(folder / "train" / "cat" / f"grey-{k}.png")
    three = ", ".join(f"'cat/grey-{k}.png'" for k in range(3))
    with pytest.raises(
        DataError, match=rf"4 of 10 images differ .*L 8 x 8: 4\): {three}, \.\.\.\. Make"
    ) as e:
        read_image_folder(folder, side=SIDE)
    assert e.value.code == "image-mixed"
    for mixed, reason in (("skip", "mixed"), ("convert", "converted")):
        train, test = read_image_folder(folder, side=SIDE, mixed=mixed)
        assert train.unusual == {reason: [f"cat/grey-{k}.png" for k in range(4)]} and not test.unusual
