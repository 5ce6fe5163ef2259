"""Recipe settings: typed, frozen, and refused with every problem at once.

Room: recipes. May import pydantic and `reticent.errors`; no torch.
"""

import difflib
import math
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from reticent.errors import ConfigError


class RecipeConfig(BaseModel):
    """Settings every recipe has, whatever it does with the data.

    An `epsilon` of infinity asks for a run without clipping, noise or ledger: not private.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, strict=True)

    epsilon: Annotated[float, Field(gt=0, description="privacy budget, e.g. 3; inf turns privacy off")] = 3.0
    delta: Annotated[float, Field(gt=0, lt=1, description="below 1 / number of examples, e.g. 1e-5")] = 1e-5
    seed: Annotated[int, Field(ge=0, description="of weights, dropout, augmentation; never of noise")] = 0
    noise_seed: Annotated[
        int | None, Field(ge=0, description="fixes noise and sampling: the run is NOT private")
    ] = None

    # What a run of another recipe takes over when it replaces this one.
    carried: ClassVar[tuple[str, ...]] = ("epsilon", "delta", "seed", "noise_seed")

    @property
    def private(self) -> bool:
        """Whether the run's epsilon will protect anyone."""
        return math.isfinite(self.epsilon) and self.noise_seed is None

    def ignored(self, settings: Collection[str]) -> list[str]:
        """A problem for each of the settings that a person gave and nothing would read.

        Args:
            settings: names of the settings that the person gave.
        """
        return ["delta would be ignored: epsilon = inf turns privacy off. Leave it out"] * (
            math.isinf(self.epsilon) and "delta" in settings
        )

    def completed(self, settings: Collection[str]) -> Self:
        """With defaults that depend on what else was given.

        Args:
            settings: names of the settings that the person gave.
        """
        return self

    def public_dict(self) -> dict[str, Any]:
        """As JSON values; an infinite epsilon becomes the string "inf"."""
        values = self.model_dump()
        return {**values, "epsilon": "inf"} if math.isinf(self.epsilon) else values


_Config = TypeVar("_Config", bound=RecipeConfig)


def make_config(kind: type[_Config], settings: Mapping[str, Any]) -> _Config:
    """Check what a person set, all of it, and fill in the rest.

    A setting that would be ignored is a problem too (`RecipeConfig.ignored`).

    Raises:
        ConfigError[config]: lists every problem, each with the way out.
    """
    try:
        config = kind.model_validate(dict(settings))
    except ValidationError as e:
        raise _problems([_explain(kind, problem) for problem in e.errors()]) from None
    problems = config.ignored(settings.keys())
    if problems:
        raise _problems(problems)
    return config.completed(settings.keys())


def without_what_would_be_ignored(
    kind: type[RecipeConfig], settings: Mapping[str, Any], *, keep: Collection[str]
) -> dict[str, Any]:
    """The settings less those, one by one, whose absence mends a problem and makes none.

    Some settings only go together: none of those is left out because it does not stand alone.

    Args:
        kind: the recipe's settings.
        settings: name -> value.
        keep: names that stay.
    """
    kept = dict(settings)
    wrong, problems = _found(kind, kept)
    names = [name for name in settings if name not in keep]
    while names and problems:  # a value that is wrong hides what would be ignored: begin again behind it
        name = names.pop(0)
        without = {n: value for n, value in kept.items() if n != name}
        still_wrong, left = _found(kind, without)
        if left < problems or (wrong and not still_wrong):
            kept, wrong, problems = without, still_wrong, left
            names = [n for n in kept if n not in keep]
    return kept


def _found(kind: type[RecipeConfig], settings: Mapping[str, Any]) -> tuple[bool, frozenset[str]]:
    """Whether values are wrong, and what `make_config` lists: those, or what would be ignored."""
    try:
        config = kind.model_validate(dict(settings))
    except ValidationError as e:
        return True, frozenset(_explain(kind, problem) for problem in e.errors())
    return False, frozenset(config.ignored(settings.keys()))


def with_defaults(kind: type[_Config], name: str, **defaults: Any) -> type[_Config]:
    """The settings `kind` with other defaults: types, ranges and meanings stay."""
    fields: dict[str, Any] = {}
    for key, value in defaults.items():
        field = kind.model_fields[key]
        kept = Annotated[field.annotation, *field.metadata, Field(description=field.description)]
        fields[key] = (kept, value)
    return create_model(name, __base__=kind, **fields)


def restore_config(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    """The settings of a run, from its `run.json`.

    Raises:
        ConfigError[config]: they are not this recipe's settings (edited, or of another version).
    """
    epsilon = math.inf if values.get("epsilon") == "inf" else values.get("epsilon")
    try:
        return kind.model_validate({**values, "epsilon": epsilon})
    except ValidationError as e:
        raise _problems([_explain(kind, problem) for problem in e.errors()]) from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a config file.

    Raises:
        ConfigError[config-file]: missing, unreadable, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ConfigError(f"Cannot read the config file '{path}': {e}.", code="config-file") from e


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` texts into typed settings; values are read as TOML, other words as text.

    `lr=0.5`, `twin=true`, `epsilon=inf`, `optimizer=adam`, `noise_seed=none`.

    Raises:
        ConfigError[config]: lists every text without a key or an equals sign.
    """
    settings: dict[str, Any] = {}
    problems = []
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(f"--set {text!r} is not key=value, e.g. --set epsilon=2")
        else:
            settings[key.strip().replace("-", "_")] = _value(value.strip())
    if problems:
        raise _problems(problems)
    return settings


def nearest(word: str, known: Sequence[str]) -> str:
    """`Did you mean 'x'? ` or nothing."""
    match = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean '{match[0]}'? " if match else ""


def _value(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        pass
    try:
        return float(text)  # .5 and 1. are no TOML
    except ValueError:
        return text


def _explain(kind: type[RecipeConfig], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    known = list(kind.model_fields)
    if problem["type"] == "extra_forbidden":
        return f"unknown setting '{key}'. {nearest(key, known)}Known: {', '.join(known)}"
    if not key:
        return problem["msg"].removeprefix("Value error, ")
    said = problem["msg"][0].lower() + problem["msg"][1:]
    field = kind.model_fields.get(key.split(".")[0])
    meaning = f" ({field.description})" if field is not None and field.description else ""
    return f"{key}: {said}, got {problem['input']!r}{meaning}"


def _problems(problems: Sequence[str]) -> ConfigError:
    if len(problems) == 1:
        return ConfigError(f"{problems[0]}.", code="config")
    listed = "; ".join(f"({k}) {problem}" for k, problem in enumerate(problems, 1))
    return ConfigError(f"{len(problems)} problems with the settings: {listed}.", code="config")
