"""Weights that a run begins with: not from an earlier run on the same data, whose cost is in another ledger.

Room: recipes. May import `reticent.errors`.

A run notes in `run.json`, under `origin`, where its rows lie and every run whose weights it began with. Of
runs that older versions made, the settings say both, as they were typed: those are followed.
"""

import filecmp
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from reticent.errors import ConfigError

from ._stamp import same_rows

OWN_FOLDER: Final = "folder"
_NAMELESS: Final = ("file", OWN_FOLDER)  # data of a person's own: told apart by where they are
_OURS: Final = ("model", "adapter")  # what a run calls the folders that `from_pretrained` reads
_PARENTS: Final = 3  # a file of a run's lies in its folder, or in one there, e.g. a twin's


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What a run was on, as far as anybody noted it.

    Args:
        run: the run's folder.
        name: of the data set.
        path: of rows of a person's own, whole.
        ids: [device, file, time of change] of file or folder, which a new name leaves as they are.
        typed: a path as it was typed, from a folder that is not known.
        lost: weights as they were typed that the run began with, and that are not there any more.
        unnamed: whether its rows were handed over in Python, so that nothing says what they are.
    """

    run: str = ""
    name: str | None = None
    path: str | None = None
    ids: tuple[tuple[int, ...], ...] = ()
    typed: str | None = None
    lost: str | None = None
    unnamed: bool = False


def refuse_same_data(weights: Path, *, about: Mapping[str, Any], data: str | None) -> None:
    """Refuse weights that a run on the data set that is to be trained on had a part in.

    | weights | |
    |---|---|
    | of a run on the same data, by name, path, link or content | refused |
    | of a run that began with such weights, and so on | refused |
    | of a run that does not say enough: an older version's, or given its rows in Python | refused |
    | copied out of a run's folder | not recognised: that they are public is then the operator's word |

    Args:
        weights: a file, or a model's folder.
        about: what the new run says of its data.
        data: where data of a person's own are, as the settings name them.

    Raises:
        ConfigError[start-from]: as said.
    """
    mine = _rows_of(about, data)
    for theirs, way in _ancestors(weights):
        through = f", by way of {' and '.join(map(repr, way))}" if way else ""
        if _same(mine, theirs):
            raise ConfigError(
                f"The weights in '{weights}' were learned by a run on the same data, '{theirs.run}'{through}."
                " What that run spent would be in no ledger of this one, whose epsilon would be too low. "
                "Begin with public weights. What several runs on one data set spend together, "
                "`reticent account RUN1 RUN2` says.",
                code="start-from",
            )
        if why := _doubt(mine, theirs):
            raise ConfigError(
                f"The weights in '{weights}' may have been learned by a run on the same data: '{theirs.run}'"
                f"{through}, which {why}. Begin with public weights; or, if you know that no "
                "run on this data had a part in them, copy them to a folder of their own: it is then your "
                "word.",
                code="start-from",
            )


def origin_of(weights: Path | None, *, about: Mapping[str, Any], data: str | None) -> dict[str, Any]:
    """What a run notes for those that begin with its weights, as JSON values. No row is read.

    Args:
        weights: what it begins with, if that is not random or known.
        about: as for `refuse_same_data`.
        data: likewise.
    """
    mine = _rows_of(about, data)
    before = [] if weights is None else [asdict(theirs) for theirs, _ in _ancestors(weights)]
    return {"path": mine.path, "ids": [list(one) for one in mine.ids], "begins_with": before}


def folder_named(name: str) -> Path | None:
    """The folder on this machine that a network's name says, if it says one; it need not be there.

    | name | folder |
    |---|---|
    | `timm:local-dir:PATH` | PATH, as timm reads it |
    | `timm:hf-hub:NAME`, `timm:NAME` | none: public |
    | `transformers:PATH`, `PATH` | PATH, if there is such a folder: other names are of the hub |
    """
    library, _, rest = name.partition(":")
    if library == "timm":
        try:
            parts = urlsplit(rest)
        except ValueError:  # timm says so too
            return None
        return Path(parts.path) if parts.scheme == "local-dir" else None
    place = Path(rest if library == "transformers" else name)
    return place if os.path.isdir(place) else None  # false of a name too long, too


# -- what is the same -------------------------------------------------------------------------------


def _rows_of(about: Mapping[str, Any], data: str | None) -> _Rows:
    """What a run that begins now is on."""
    name = about.get("name")
    if data is None or not _is_placed(about):
        return _Rows(name=name)
    place = Path(data).resolve()
    return _Rows(name=name, path=str(place), ids=tuple(map(tuple, _ids(place))))


def _is_placed(about: Mapping[str, Any]) -> bool:
    """Whether the data are told apart by where they are, or lie in a person's folder all the same."""
    return about.get("name") in _NAMELESS or about.get("source") == OWN_FOLDER


def _ids(place: Path) -> Iterator[tuple[int, ...]]:
    for path in (place, place / "train"):
        try:
            found = path.stat()
        except OSError:
            continue
        if found.st_ino:
            yield found.st_dev, found.st_ino, found.st_mtime_ns


def _same(mine: _Rows, theirs: _Rows) -> bool:
    if mine.name is not None and mine.name not in _NAMELESS and mine.name == theirs.name:
        return True
    if set(mine.ids) & set(theirs.ids):
        return True
    if mine.path is None:
        return False
    places = [theirs.path] if theirs.path is not None else []
    if theirs.typed is not None:
        places = [str(place) for place in _from_anywhere(theirs.typed, theirs.run) if place.exists()]
    return any(_overlap(Path(mine.path), Path(place).resolve()) for place in places)


def _overlap(one: Path, other: Path) -> bool:
    """Whether both are of one table or folder of images, one lies in the other, or is its copy."""
    if same_rows(one, other):
        return True
    mine, theirs = _rows_in(one), _rows_in(other)
    return mine.is_relative_to(theirs) or theirs.is_relative_to(mine) or _copied(mine, theirs)


def _rows_in(place: Path) -> Path:
    return place / "train" if os.path.isdir(place / "train") else place


def _copied(one: Path, other: Path) -> bool:
    """Whether all files have the same names and content; it ends at the first that differs."""
    mine, theirs = _listed(one), _listed(other)
    if not mine or mine != theirs:
        return False
    try:
        return all(filecmp.cmp(one / name, other / name, shallow=False) for name, _ in mine)
    except OSError:
        return False


def _listed(place: Path) -> list[tuple[str, int]]:
    """(name, size) of every file; of a file alone no name."""
    try:
        if place.is_file():
            return [("", place.stat().st_size)]
        files = [Path(folder) / name for folder, _, names in os.walk(place) for name in names]
        return sorted((str(file.relative_to(place)), file.stat().st_size) for file in files)
    except OSError:
        return []


def _doubt(mine: _Rows, theirs: _Rows) -> str:
    """Why nobody can tell that the data differ; nothing if they do."""
    if theirs.unnamed:
        return "was given its rows in Python and does not say what they are"
    if theirs.lost is not None:
        return f"began with weights that are not found, '{theirs.lost}'"
    if theirs.typed is None or mine.path is None:
        return ""
    told = f"names its data as '{theirs.typed}', relative to a folder that it does not name"
    if not any(place.exists() for place in _from_anywhere(theirs.typed, theirs.run)):
        return told
    end = tuple(part for part in Path(os.path.normpath(theirs.typed)).parts if part != os.pardir)
    ends = (end, (*end, "train"), end[:-1] if end[-1:] == ("train",) else end)
    paths = [Path(mine.path).parts, (Path(mine.path) / "train").parts]
    return told if any(parts[len(parts) - len(end) :] == end for parts in paths for end in ends) else ""


def _from_anywhere(typed: str, run: str) -> Iterator[Path]:
    """Where a relative path may lead: from here, and from the folders that the run's is in."""
    yield Path(typed)
    if not os.path.isabs(typed):
        yield from (above / typed for above in Path(run).parents)


# -- who had a part in weights ----------------------------------------------------------------------


def _ancestors(weights: Path) -> Iterator[tuple[_Rows, Sequence[str]]]:
    """The rows of every run that had a part in weights, and the runs between; each run once."""
    seen: set[Path] = set()
    left: list[tuple[Path, tuple[str, ...]]] = [(weights, ())]
    while left:
        place, way = left.pop()
        for folder, about in _runs_of(place):
            if folder in seen:
                continue
            seen.add(folder)
            yield _rows_noted(folder, about), way
            on = (*way, str(folder))
            noted = _dict(about.get("origin")).get("begins_with")
            if isinstance(noted, list):
                yield from ((_read(one, str(folder)), on) for one in noted)
                continue
            for typed in _typed_weights(_dict(about.get("config"))):
                places = [p for p in _from_anywhere(typed, str(folder)) if p.exists() or list(_runs_of(p))]
                left += [(found, on) for found in places]
                if not places:
                    yield _Rows(run=str(folder), lost=typed), way


def _runs_of(weights: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Folder and `run.json` of the runs in whose folders weights lie, or the files that they are links to."""
    place = weights.resolve()
    files = [place]
    if os.path.isdir(place):
        files += [file.resolve() for file in sorted(place.iterdir()) if file.is_symlink()]
        base = _json(place / "adapter_config.json").get("base_model_name_or_path")
        files += [Path(base).resolve()] if isinstance(base, str) and os.path.isdir(base) else []
    for file in files:
        above = [file, *file.parents] if os.path.isdir(file) else [*file.parents]
        for folder in above[:_PARENTS]:
            if found := _json(folder / "run.json"):
                yield folder, found
                break


def _rows_noted(folder: Path, about: Mapping[str, Any]) -> _Rows:
    """What a run was on: as it noted, or as its settings say."""
    data, origin = _dict(about.get("data")), about.get("origin")
    if isinstance(origin, dict):
        return replace(_read({**origin, "name": data.get("name")}, str(folder)), run=str(folder))
    if about.get("recipe") is None and "run_id" in about:  # without, the file is of another program
        return _Rows(run=str(folder), unnamed=True)
    typed, name = _dict(about.get("config")).get("data"), data.get("name")
    if not isinstance(typed, str) or not _is_placed(data):
        return _Rows(run=str(folder), name=name)
    if os.path.isabs(typed):
        return _Rows(run=str(folder), name=name, path=typed)
    return _Rows(run=str(folder), name=name, typed=typed)


def _read(noted: Any, run: str) -> _Rows:
    """What `origin_of` wrote; what is damaged tells nothing, so that nobody can tell that it differs."""
    try:
        ids = tuple(tuple(map(int, one)) for one in noted.get("ids", ()))
        texts = {n: noted.get(n) for n in ("run", "name", "path", "typed", "lost")}
        if all(text is None or isinstance(text, str) for text in texts.values()):
            unnamed = noted.get("unnamed", False) is not False
            return _Rows(**{**texts, "run": texts["run"] or run}, ids=ids, unnamed=unnamed)
    except (AttributeError, TypeError, ValueError):
        pass
    return _Rows(run=run, lost="?")


def _typed_weights(config: Mapping[str, Any]) -> Iterator[str]:
    """Files and folders that the settings of an older version's run say it began with."""
    start, model = config.get("start_from"), config.get("model")
    if isinstance(start, str):
        yield start
    of_images = "pretrained" in config or "start_from" in config
    if not isinstance(model, str) or (of_images and not config.get("pretrained")):
        return
    folder = folder_named(model)
    plain = model.removeprefix("transformers:")
    if folder is not None:
        yield str(folder)
    elif not model.startswith("timm:") and (Path(plain).name in _OURS or len(Path(plain).parts) > 2):
        yield plain  # no name of the hub: a folder, from elsewhere


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return _dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
