"""What a sweep is: a recipe, settings that all its runs share, and the grids of those that vary.

Room: sweep. May import `reticent.{recipes,errors}`; no torch.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reticent.errors import ConfigError
from reticent.recipes import (
    Recipe,
    Request,
    make_config,
    parse_settings,
    read_toml,
    recipes,
    request,
    without_what_would_be_ignored,
)

Grid = Mapping[str, tuple[Any, ...]]
_TOML_KEYS = ("recipe", "x", "series", "set", "grid", "plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Settings of many runs of one recipe.

    Args:
        recipe: the recipe's name.
        shared: settings of every run.
        grids: each a setting's name -> its values; a grid stands for all combinations of its values.
        plain_grids: as `grids`, for the runs without privacy that the plot compares with; what they leave
            out is as in `grids`, except what only a private run reads and the learning rate.
        x: the setting on the plot's horizontal axis.
        plain_rates: runs without privacy take the learning rates of `grids` too.
        series: settings that have a line for each of their values; after the first, only where a run sets
            them. None of them: one line.
    """

    recipe: str
    shared: Mapping[str, Any]
    grids: tuple[Grid, ...]
    plain_grids: tuple[Grid, ...] = ()
    x: str = "epsilon"
    plain_rates: bool = False
    series: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "recipe": self.recipe,
            "shared": json_settings(self.shared),
            "grids": [
                {k: [json_value(v) for v in values] for k, values in grid.items()} for grid in self.grids
            ],
            "plain_grids": [
                {k: [json_value(v) for v in values] for k, values in grid.items()}
                for grid in self.plain_grids
            ],
            "x": self.x,
            "plain_rates": self.plain_rates,
            "series": list(self.series),
        }

    def private_settings(self) -> list[dict[str, Any]]:
        """Settings of each private run, in the order of the grids; the same ones once."""
        every = [{**self.shared, **one} for grid in self.grids for one in combinations(grid)]
        return distinct(settings for settings in every if not _plain(settings))

    def plain_settings(self) -> list[dict[str, Any]]:
        """Settings of each run without privacy."""
        recipe = recipes()[self.recipe]
        asked = [{**self.shared, **one} for grid in self.grids for one in combinations(grid)]
        without = [_without_privacy(recipe, settings, with_rate=self.plain_rates) for settings in asked]
        varied = [one for grid in self.plain_grids for one in combinations(grid)] or [{}]
        return distinct({**settings, **one} for settings in without for one in varied)


def read_sweep(
    target: str,
    assignments: Sequence[str] = (),
    grid: Sequence[str] = (),
    plain_grid: Sequence[str] = (),
    *,
    x: str | None = None,
    series: str | None = None,
) -> Sweep:
    """Read what a person asked for.

    Args:
        target: a recipe's name, or a TOML file with `recipe`, `[set]`, `[[grid]]`, `[[plain]]`, `x` and
            `series`.
        assignments: `key=value` texts, for every run.
        grid: `key=value,value,...` texts, which make one more grid.
        plain_grid: the same for the runs without privacy.
        x: the plot's horizontal axis.
        series: what has a line for each value; several settings with commas.

    Raises:
        ConfigError[sweep]: nothing varies, a grid is malformed, or the file holds something else.
        ConfigError[unknown-recipe], ConfigError[config-file], ConfigError[config]: as
            `reticent.recipes.request`.
    """
    given: dict[str, Any] = {}
    if target not in recipes() and (target.endswith(".toml") or Path(target).is_file()):
        given = read_toml(Path(target))
        unknown = sorted(given.keys() - set(_TOML_KEYS))
        if unknown:
            raise ConfigError(
                f"Unknown in the sweep's file: {', '.join(unknown)}. Known: {', '.join(_TOML_KEYS)}.",
                code="sweep",
            )
        target = str(given.get("recipe"))
    if target not in recipes():
        request(target)  # refuses it, with those that there are
    grids = [_file_grid(entry) for entry in given.get("grid", ())]
    if grid:
        grids = [{**each, **read_grid(grid)} for each in grids or [{}]]
    plain = [_file_grid(entry) for entry in given.get("plain", ())]
    if plain_grid:
        plain.append(read_grid(plain_grid))
    if not grids:
        raise ConfigError("A sweep varies something: give --grid key=value,value,...", code="sweep")
    asked = Sweep(
        recipe=target,
        shared={**given.get("set", {}), **parse_settings(assignments)},
        grids=tuple(grids),
        plain_grids=tuple(plain),
        x=(x or given.get("x", "epsilon")).replace("-", "_"),
        series=_names(series or given.get("series", "")),
    )
    _check(asked)
    return asked


def asked_for(recipe: str, settings: Mapping[str, Any]) -> Request:
    """The request for one run.

    Raises:
        ConfigError[config]: lists every problem with the settings.
    """
    found = recipes()[recipe]
    return Request(recipe=found, config=make_config(found.config, settings), chosen=dict(settings))


def json_value(value: Any) -> Any:
    """A setting as JSON; infinity becomes "inf"."""
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def json_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON."""
    return {key: json_value(value) for key, value in settings.items()}


def _check(asked: Sweep) -> None:
    """Refuse an axis that nothing sets, and a grid of which no combination is a run at all."""
    recipe = recipes()[asked.recipe]
    for name in (asked.x, *asked.series):
        if name not in recipe.config.model_fields:
            raise ConfigError(f"'{name}' is no setting of recipe '{asked.recipe}'.", code="sweep")
    problems = []
    every = asked.private_settings()
    for settings in every:
        try:
            asked_for(asked.recipe, settings)
        except ConfigError as e:
            problems.append(str(e.args[0]))
    if problems and len(problems) == len(every):
        raise ConfigError(f"No combination of the grid can run: {problems[0]}", code="sweep")


def combinations(grid: Grid) -> list[dict[str, Any]]:
    """Every choice of one value for each of a grid's settings."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def distinct(every: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Settings, the same ones once."""
    seen: dict[tuple, dict[str, Any]] = {}
    for settings in every:
        seen.setdefault(tuple(sorted((k, repr(v)) for k, v in settings.items())), settings)
    return list(seen.values())


def _plain(settings: Mapping[str, Any]) -> bool:
    return settings.get("epsilon") == math.inf


def _without_privacy(recipe: Recipe, settings: Mapping[str, Any], *, with_rate: bool) -> dict[str, Any]:
    """The same run without privacy: without what it would ignore, and with its own learning rate."""
    left_out = ["epsilon", "noise_seed", *(["lr"] if not with_rate and not _plain(settings) else [])]
    kept = {"epsilon": math.inf, **{n: value for n, value in settings.items() if n not in left_out}}
    return without_what_would_be_ignored(recipe.config, kept, keep=("epsilon",))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().replace("-", "_") for name in text.split(",") if name.strip())


def read_grid(texts: Sequence[str], *, option: str = "--grid") -> dict[str, tuple[Any, ...]]:
    """A setting's name -> its values, of `key=value,value,...` texts.

    Raises:
        ConfigError[sweep]: a text is malformed; the message names the option that it was given to.
    """
    grid = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key.strip() or not values.strip(" ,"):
            raise ConfigError(f"{option} {text!r} is not key=value,value,...", code="sweep")
        parsed = [parse_settings([f"{key}={value}"]) for value in values.split(",") if value.strip()]
        (name,) = parsed[0]
        grid[name] = tuple(one[name] for one in parsed)
    return grid


def _file_grid(entry: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {key: tuple(values) if isinstance(values, list) else (values,) for key, values in entry.items()}
