"""Archives made by hand, a tiny data set with one route a source, clients that stay on the machine."""

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from reticent.data._cache import arrays_sha256
from reticent.data._images import decode_mnist_like, pair_up
from reticent.data._records import Entry, RemoteFile, Route, Source
from reticent.data._talk import Talk
from reticent.errors import DataError


def idx_bytes(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def make_zip(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(zipfile.ZipInfo(name), content)  # a fixed date: the same bytes every time
    return out.getvalue()


def make_tgz(members: Mapping[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return gzip.compress(out.getvalue(), mtime=0)


def make_deb(members: Mapping[str, bytes]) -> bytes:
    data = make_tgz({"./" + name: content for name, content in members.items()})
    out = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), ("data.tar.gz", data)):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode()
        out += body + b"\n" * (len(body) % 2)
    return out


ARRAYS = {
    "train_x": np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3),
    "train_y": np.array([0, 1, 1, 0, 1]),
    "test_x": np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3),
    "test_y": np.array([1, 0]),
}


def idx_files(folder: str, arrays: Mapping[str, np.ndarray], *, zipped: bool) -> dict[str, bytes]:
    names = {
        "train_x": "train-images-idx3-ubyte",
        "train_y": "train-labels-idx1-ubyte",
        "test_x": "t10k-images-idx3-ubyte",
        "test_y": "t10k-labels-idx1-ubyte",
    }
    raw = {name: idx_bytes(arrays[key].astype(np.uint8)) for key, name in names.items()}
    return {
        folder + name + (".gz" if zipped else ""): gzip.compress(content, mtime=0) if zipped else content
        for name, content in raw.items()
    }


def tiny_archives() -> dict[str, tuple[str, bytes]]:
    """Kind of client -> file name and bytes: the same arrays, packed in four ways."""
    return {
        "https": ("tiny.zip", make_zip(idx_files("a/", ARRAYS, zipped=True))),
        "pip": ("tiny-1.0-py3-none-any.whl", make_zip(idx_files("tiny/data/", ARRAYS, zipped=False))),
        "npm": ("tiny-1.0.tgz", make_tgz(idx_files("package/data/", ARRAYS, zipped=False))),
        "apt": ("tiny_1.0_all.deb", make_deb(idx_files("usr/share/tiny/", ARRAYS, zipped=True))),
    }


def source_of(kind: str, name: str, content: bytes, **changes: object) -> Source:
    file = {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} | changes
    return Source(kind=kind, package="tiny", version="1.0", files=(RemoteFile(**file),))


def tiny_entry(kinds: tuple[str, ...] = ("https", "pip", "npm", "apt"), **changes: object) -> Entry:
    archives = tiny_archives()
    sources = [source_of(kind, *archives[kind], **changes) for kind in kinds]
    return Entry(
        name="tiny",
        sha256=arrays_sha256(ARRAYS),
        assemble=pair_up,
        class_names=("no", "yes"),
        licence="none",
        citation="nobody",
        routes=tuple(
            Route(label=s.label, sources=(s,), decode=decode_mnist_like, package_licence="MIT")
            for s in sources
        ),
    )


class Shelf:
    """Clients that copy from a table of bytes, or fail, and count how often they were asked."""

    def __init__(self, archives: Mapping[str, tuple[str, bytes]], failing: Mapping[str, str] | None = None):
        self.archives, self.failing, self.asked = dict(archives), dict(failing or {}), []

    def _serve(self, source: Source, folder: Path, talk: Talk) -> None:
        self.asked.append(source.kind)
        if source.kind in self.failing:
            raise DataError(self.failing[source.kind], code="data-unreachable")
        name, content = self.archives[source.kind]
        (folder / name).write_bytes(content)

    @property
    def clients(self) -> dict[str, Callable[[Source, Path, Talk], None]]:
        return dict.fromkeys(self.archives, self._serve)


@pytest.fixture
def made() -> SimpleNamespace:
    """The makers above, for tests in other files of this folder."""
    return SimpleNamespace(**{k: v for k, v in globals().items() if not k.startswith("_")})


@pytest.fixture
def said() -> list[str]:
    """Every line the data room said."""
    return []


@pytest.fixture
def talk(said: list[str]) -> Talk:
    return Talk(say=said.append, progress=False)
