"""Recipe settings: typed, frozen, and refused with every problem at once.

Room: recipes. May import pydantic and `reticent.errors`; no torch.
"""

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, ValidationError, model_validator

from reticent.errors import ConfigError

_LARGEST_RATE: Final = 1e30
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _rows_at_once(size: int | str) -> int | str:
    if size == "auto" or (isinstance(size, int) and size >= 1):
        return size
    raise ValueError(f"must be an integer >= 1, or 'auto', got {size!r}")


class RecipeConfig(BaseModel):
    """Settings every recipe has. `lr` is the run's own; `twin_lr` its non-private twin's.

    An `epsilon` of infinity asks for a run without clipping, noise or ledger: not private.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    epsilon: Annotated[float, Field(gt=0, description="privacy budget, e.g. 3; inf turns privacy off")] = 3.0
    delta: Annotated[float, Field(gt=0, lt=1, description="below 1 / number of examples, e.g. 1e-5")] = 1e-5
    num_steps: Annotated[int, Field(ge=1, description="updates in the whole run")]
    expected_batch_size: Annotated[_Positive, Field(description="examples in a step, on average")]
    max_norm: Annotated[_Positive, Field(description="clipping norm of one example's gradient")]
    lr: Annotated[_Positive, Field(description="learning rate")]
    twin_lr: Annotated[_Positive, Field(description="learning rate without privacy")]
    momentum: Annotated[float, Field(ge=0, lt=1, description="of sgd")] = 0.9
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], Field(description="what updates the weights")] = (
        "sgd"
    )
    lr_decay: Annotated[
        Literal["none", "linear"],
        Field(description="linear: the learning rate falls to zero by the last step"),
    ] = "none"
    ema: Annotated[float, Field(ge=0, lt=1, description="decay of the weights' average; 0 turns it off")] = (
        0.99
    )
    seed: Annotated[int, Field(ge=0, description="of weights, dropout, augmentation; never of noise")] = 0
    noise_seed: Annotated[
        int | None, Field(ge=0, description="fixes noise and sampling: the run is NOT private")
    ] = None
    physical_batch_size: Annotated[
        int | str,
        AfterValidator(_rows_at_once),
        Field(description="rows at once: memory, not result; auto: what fits"),
    ] = 256
    memory_budget: Annotated[
        ByteSize | None,
        Field(description="of physical_batch_size=auto, e.g. 4GiB; default 60 % of what is free"),
    ] = None
    eval_every: Annotated[int, Field(ge=0, description="steps between evaluations; 0: only at the end")] = 0
    checkpoint_every: Annotated[
        int, Field(ge=0, description="steps between checkpoints; 0: only at the end")
    ] = 50
    twin: Annotated[bool, Field(description="also train without privacy, to compare")] = False
    show_loss: Annotated[bool, Field(description="show the training loss, which is NOT private")] = False
    show_norms: Annotated[
        bool, Field(description="write down gradient norms and share clipped, which are NOT private")
    ] = False
    clipping: Annotated[
        Literal["flat", "automatic", "per-layer", "adaptive"],
        Field(
            description="how a gradient is bounded by max_norm; adaptive begins there and follows a quantile"
        ),
    ] = "flat"
    stability: Annotated[
        float | None,
        Field(ge=1e-4, allow_inf_nan=False, description="of automatic clipping; 1e-4 all but normalises"),
    ] = None
    split: Annotated[
        Literal["equal", "size"] | None, Field(description="of per-layer clipping: what max_norm is split by")
    ] = None
    target_quantile: Annotated[
        float | None, Field(gt=0, lt=1, description="of adaptive clipping: share that is not clipped")
    ] = None
    clip_lr: Annotated[
        float | None, Field(gt=0, le=10, description="of adaptive clipping: how fast the norm moves")
    ] = None
    count_noise_multiplier: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="of adaptive clipping; by default ten times the run's"),
    ] = None
    adapt_per_layer: Annotated[
        bool | None, Field(description="of adaptive clipping: a norm for each layer")
    ] = None

    @property
    def private(self) -> bool:
        """Whether the run's epsilon will protect anyone."""
        return math.isfinite(self.epsilon) and self.noise_seed is None

    @property
    def num_rows_at_once(self) -> int:
        """The physical batch size, once it is a number."""
        assert isinstance(self.physical_batch_size, int), "auto is resolved before anything runs"
        return self.physical_batch_size

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.memory_budget is not None and self.physical_batch_size != "auto":
            raise ValueError(
                "memory_budget is only read with physical_batch_size=auto, which is "
                f"{self.physical_batch_size}"
            )
        if self.memory_budget is not None and self.memory_budget < 1:
            raise ValueError("memory_budget must be a positive number of bytes")
        if math.isinf(self.epsilon) and self.twin:
            raise ValueError(
                "twin is a run without privacy beside a private one; with epsilon = inf leave it out"
            )
        for name, rate in (("lr", self.lr), ("twin_lr", self.twin_lr)):
            if rate > _LARGEST_RATE:
                raise ValueError(f"{name} must be at most {_LARGEST_RATE:g} to fit in the weights' numbers")
        return self

    def public_dict(self) -> dict[str, Any]:
        """As JSON values; an infinite epsilon becomes the string "inf"."""
        values = self.model_dump()
        return {**values, "epsilon": "inf"} if math.isinf(self.epsilon) else values


_Config = TypeVar("_Config", bound=RecipeConfig)
# Settings that only one kind of clipping reads.
_OF_CLIPPING: Final[Mapping[str, str]] = MappingProxyType(
    {
        "stability": "automatic",
        "split": "per-layer",
        "target_quantile": "adaptive",
        "clip_lr": "adaptive",
        "count_noise_multiplier": "adaptive",
        "adapt_per_layer": "adaptive",
    }
)
_IGNORED_WITHOUT_PRIVACY: Final = ("max_norm", "twin_lr", "delta", "clipping", "show_norms", *_OF_CLIPPING)


def make_config(kind: type[_Config], settings: Mapping[str, Any]) -> _Config:
    """Check what a person set, all of it, and fill in the rest.

    A setting that would be ignored is a problem too: `momentum` with adam, or what only a private
    run uses with `epsilon = inf`. Without privacy, `lr` is by default the recipe's `twin_lr`.

    Raises:
        ConfigError[config]: lists every problem, each with the way out.
    """
    try:
        config = kind.model_validate(dict(settings))
    except ValidationError as e:
        raise _problems([_explain(kind, problem) for problem in e.errors()]) from None
    problems = []
    if "momentum" in settings and config.optimizer != "sgd":
        problems.append(f"momentum is a setting of sgd, and optimizer is {config.optimizer!r}: leave it out")
    if math.isinf(config.epsilon):
        problems += [
            f"{name} would be ignored: epsilon = inf turns privacy off. Leave it out"
            for name in _IGNORED_WITHOUT_PRIVACY
            if name in settings
        ]
    else:
        if "twin_lr" in settings and not config.twin:
            problems.append("twin_lr would be ignored: set twin = true as well, or leave it out")
        problems += [
            f"{name} is a setting of {needed} clipping, and clipping is {config.clipping!r}: set clipping = "
            f"{needed!r} as well, or leave it out"
            for name, needed in _OF_CLIPPING.items()
            if name in settings and config.clipping != needed
        ]
    if problems:
        raise _problems(problems)
    if math.isinf(config.epsilon) and "lr" not in settings:
        return config.model_copy(update={"lr": config.twin_lr})
    return config


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
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
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
    except tomllib.TOMLDecodeError:
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
