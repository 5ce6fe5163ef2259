"""One image file to bytes of one size: decoded, turned upright, opaque, eight bits a channel.

Room: data. Imports numpy and Pillow.

Shape letters: S side.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from reticent.errors import DataError

Kind = tuple[str, tuple[int, int]]  # mode and size
_BEHIND: Final = "white"  # what shows through transparent pixels
_CUT: Final = "cut short or no image"
_BOMBS: Final = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_NAMED: Final = 3


def trial(path: Path, side: int, mode: Literal["RGB", "L"] = "RGB") -> Kind | str:
    """Mode and size of an image that could be opened and fitted, or why it could not."""
    try:
        image = opened(path)
    except DataError as error:
        return _too_large() if isinstance(error.__cause__, _BOMBS) else _CUT
    why = _no_bytes(image)
    if why is not None:
        return why
    try:
        fitted(image, side, mode)
    except DataError:
        return f"mode {image.mode}, which is not converted"
    return image.mode, image.size


def opened(path: Path) -> Image.Image:
    """The decoded image, turned as its EXIF orientation says.

    Raises:
        DataError[image-unreadable]: it cannot be decoded, or has more pixels than Pillow's limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # By its name, Pillow 13 would map a raw TIFF into memory, and garble one that lies on its side.
            with path.open("rb") as stream, Image.open(stream) as image:
                image.load()
                return _upright(image)
    except _BOMBS as error:
        raise DataError(
            f"The image '{short_name(path)}' has {_too_large()}.", code="image-unreadable"
        ) from error
    except (
        OSError,
        RuntimeError,  # of a damaged AVIF
        SyntaxError,
        ValueError,
        TypeError,  # Pillow's, of a TIFF whose tags have other types
        UnidentifiedImageError,
    ) as error:
        raise DataError(
            f"The image '{short_name(path)}' cannot be decoded or is cut short.",
            code="image-unreadable",
        ) from error


def fitted(image: Image.Image, side: int, mode: Literal["RGB", "L"] = "RGB") -> np.ndarray:
    """Bytes (S, S, 3), or grey ones (S, S): the shorter side scaled to `side`, the middle cut out.

    | pixels | become |
    |---|---|
    | transparent, by a channel, a palette or one colour | composed over white |
    | grey of 16 bits | v / 257, rounded: the whole range to the whole range |
    | 32 bits a channel, integers or floating | refused: no file says their range |
    | others | what Pillow converts them to |

    No more is scaled than the middle, so an image of 1 x 60,000 pixels takes no more memory than others.

    Raises:
        DataError[image-unreadable]: the mode is refused, or Pillow cannot convert it.
    """
    why = _no_bytes(image)
    if why is not None:
        raise DataError(f"An image has {why}.", code="image-unreadable")
    try:
        rgb = _opaque(image).convert(mode)
    except (ValueError, OSError) as error:
        raise DataError(
            f"An image of mode {image.mode} cannot be converted to {mode}.", code="image-unreadable"
        ) from error
    width, height = rgb.size
    if (width, height) != (side, side):
        scale = side / min(width, height)
        wide, high = max(side, round(width * scale)), max(side, round(height * scale))
        left, top = (wide - side) // 2, (high - side) // 2
        box = (
            left * width / wide,
            top * height / high,
            (left + side) * width / wide,
            (top + side) * height / high,
        )
        rgb = rgb.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.array(rgb)


def short_name(path: Path) -> str:
    """A file with the folder that it is in."""
    return f"{path.parent.name}/{path.name}"


def some(names: Sequence[str]) -> str:
    """The first three names, quoted."""
    return ", ".join(f"'{name}'" for name in names[:_NAMED]) + ", ..." * (len(names) > _NAMED)


def refusal(bad: Sequence[tuple[str, str]], total: int, *, advice: str) -> DataError:
    """The error for files that cannot be read: counted by why, the first three of each named.

    Args:
        bad: names, and why, as `trial` says it.
        total: number of all files.
        advice: what to do.
    """
    by_reason: dict[str, list[str]] = {}
    for name, why in bad:
        by_reason.setdefault(why, []).append(name)
    listed = "; ".join(f"{why}: {len(names)}, {some(names)}" for why, names in by_reason.items())
    return DataError(
        f"{len(bad)} of {total} images cannot be read ({listed}). {advice}", code="image-unreadable"
    )


def _too_large() -> str:
    limit = Image.MAX_IMAGE_PIXELS
    return (
        f"more than {limit:,} pixels, above which Pillow suspects a file made to exhaust memory (save it "
        "smaller, or if you trust it raise PIL.Image.MAX_IMAGE_PIXELS in Python)"
    )


def _no_bytes(image: Image.Image) -> str | None:
    """Why an image's channels cannot become bytes."""
    return "32 bits a channel" if image.mode in ("I", "F") and not _sixteen_bits(image) else None


def _sixteen_bits(image: Image.Image) -> bool:
    """Whether it is grey of 16 bits; Pillow gives that of a PGM, scaled to the whole range, as 32."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def _opaque(image: Image.Image) -> Image.Image:
    """Eight bits a channel, without transparency."""
    if _sixteen_bits(image):
        values = np.array(image).astype(np.uint32)
        bytes_ = ((values + 128) // 257).astype(np.uint8)
        clear = image.info.get("transparency")
        return Image.fromarray(bytes_ if clear is None else np.where(values == clear, np.uint8(255), bytes_))
    if not image.has_transparency_data:
        return image
    above = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, _BEHIND), above)


def _upright(image: Image.Image) -> Image.Image:
    """As its EXIF says that it is to be seen; as it is stored, where that cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF
            turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever Pillow raises at damaged EXIF
        return image
    if turn not in range(2, 9):
        return image
    plain = image.copy()  # without the rest of its EXIF, which Pillow would write anew, and may fail to
    plain.info = {key: value for key, value in image.info.items() if key == "transparency"}
    plain.getexif()[ExifTags.Base.Orientation] = turn
    return ImageOps.exif_transpose(plain)
