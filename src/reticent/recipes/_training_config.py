"""Settings of recipes that train by private gradient steps.

Room: recipes. May import pydantic, `reticent.sample` and `reticent.errors`; no torch.
"""

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, model_validator

from reticent.errors import ConfigError
from reticent.sample import read_batch_schedule

from ._config import RecipeConfig

_LARGEST_RATE: Final = 1e30
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _rows_at_once(size: int | str) -> int | str:
    if size == "auto" or (isinstance(size, int) and size >= 1):
        return size
    raise ValueError(f"must be an integer >= 1, or 'auto', got {size!r}")


def _schedule(text: str | None) -> str | None:
    if text is not None:
        try:
            read_batch_schedule(text)
        except ConfigError as e:
            raise ValueError(str(e.args[0])) from None
    return text


def _average(decay: object) -> object:
    if decay == "polyak" or (type(decay) in (int, float) and 0 <= decay < 1):  # type: ignore[operator]
        return decay
    raise ValueError("must be at least 0 and less than 1, or 'polyak'")


def _no_pipeline(parallel: object) -> object:
    if parallel in ("pp", "pipeline"):
        raise ConfigError(
            "pipeline parallel is not supported, because an example is clipped by its norm over all stages, "
            "of which each knows its own: set parallel = fsdp2 (or tp) if the model does not fit on a device",
            code="pipeline-parallel",
        )
    return parallel


PhysicalBatchSize = Annotated[
    int | str,
    AfterValidator(_rows_at_once),
    Field(description="rows at once: memory, not result; auto: what fits"),
]
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
_IGNORED_WITHOUT_PRIVACY: Final = (
    "max_norm",
    "noise_multiplier",
    "twin_lr",
    "clipping",
    "show_norms",
    "compile",
    "low_memory",
    *_OF_CLIPPING,
)


class TrainingConfig(RecipeConfig):
    """Settings of every training recipe. `lr` is the run's own; `twin_lr` its non-private twin's."""

    num_steps: Annotated[int, Field(ge=1, description="updates in the whole run")]
    expected_batch_size: Annotated[_Positive, Field(description="examples in a step, on average")]
    batch_schedule: Annotated[
        str | None,
        AfterValidator(_schedule),
        Field(
            description="in place of expected_batch_size: share of the steps after which a size begins, e.g. "
            "0.0:1024,0.5:2048"
        ),
    ] = None
    max_norm: Annotated[_Positive, Field(description="clipping norm of one example's gradient")]
    lr: Annotated[_Positive, Field(description="learning rate")]
    twin_lr: Annotated[_Positive, Field(description="learning rate without privacy")]
    momentum: Annotated[float, Field(ge=0, lt=1, description="of sgd")] = 0.9
    nesterov: Annotated[bool, Field(description="of sgd: Nesterov's momentum")] = False
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw", "lamb"], Field(description="what updates the weights")
    ] = "sgd"
    weight_decay: Annotated[
        float | None,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="decoupled: an update takes lr times it off each weight; default 0, adamw 0.01",
        ),
    ] = None
    agc: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="a unit's noised gradient is at most this share of its weights' norm; 0: off",
        ),
    ] = 0.0
    lr_decay: Annotated[
        Literal["none", "linear", "cosine"],
        Field(description="how the learning rate falls to zero by the last step"),
    ] = "none"
    lr_warmup: Annotated[
        float, Field(ge=0, lt=1, description="share of the steps over which the learning rate rises first")
    ] = 0.0
    ema: Annotated[
        float | Literal["polyak"],
        BeforeValidator(_average),
        Field(description="decay of the weights' average; 0 turns it off; polyak: the plain mean"),
    ] = 0.99
    polyak: Annotated[
        bool, Field(description="keep the plain mean as well, and score it beside the others")
    ] = False
    ema_start: Annotated[int, Field(ge=0, description="updates before the averages begin")] = 0
    sampler: Annotated[
        Literal[
            "poisson", "truncated-poisson", "fixed-size", "cyclic", "shuffled", "balls-in-bins", "full-batch"
        ],
        Field(description="how a step draws examples; poisson costs the least noise"),
    ] = "poisson"
    max_batch_size: Annotated[
        int | None, Field(ge=1, description="of truncated-poisson: the largest batch, cut at random")
    ] = None
    noise_multiplier: Annotated[
        float | None,
        Field(
            gt=0, allow_inf_nan=False, description="fixes the noise; epsilon is then what it must not exceed"
        ),
    ] = None
    physical_batch_size: PhysicalBatchSize = 256
    memory_budget: Annotated[
        ByteSize | None,
        Field(description="of physical_batch_size=auto, e.g. 4GiB; default 60 % of what is free"),
    ] = None
    precision: Annotated[
        Literal["float32", "bfloat16"],
        Field(description="of forward and backward (autocast); norms and sums stay float32"),
    ] = "float32"
    compile: Annotated[
        bool, Field(description="clip in a compiled graph: minutes once, then faster steps")
    ] = False
    low_memory: Annotated[
        bool, Field(description="clip by two backwards, and keep nothing between: slower, in less memory")
    ] = False
    parallel: Annotated[
        Literal["none", "ddp", "fsdp2", "tp"],
        BeforeValidator(_no_pipeline),
        Field(
            description="ddp: a share of each batch on every process that torchrun started; fsdp2: and a "
            "part of every parameter; tp: all of each batch, and a slice of each layer (Transformers)"
        ),
    ] = "none"
    eval_every: Annotated[int, Field(ge=0, description="steps between evaluations; 0: only at the end")] = 0
    checkpoint_every: Annotated[
        int, Field(ge=0, description="steps between checkpoints; 0: only at the end")
    ] = 50
    twin: Annotated[bool, Field(description="also train without privacy, to compare")] = False
    show_loss: Annotated[bool, Field(description="show the training loss, which is NOT private")] = False
    show_norms: Annotated[
        bool, Field(description="write down gradient norms and share clipped, which are NOT private")
    ] = False
    log: Annotated[
        Literal["none", "tensorboard", "mlflow"],
        Field(description="a tracker to tell of epsilon and test scores, nothing of the training rows"),
    ] = "none"
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

    carried: ClassVar[tuple[str, ...]] = (*RecipeConfig.carried, "twin", "show_loss", "show_norms", "log")

    @property
    def gradient_scale(self) -> float:
        """A step's gradients are this times those that `lr`, `weight_decay` and `agc` are meant for."""
        return 1.0

    @property
    def num_averages(self) -> int:
        """Averages of the weights that a run keeps."""
        return bool(self.ema) + self.polyak

    @property
    def batch_sizes(self) -> tuple[tuple[float, float], ...]:
        """(share of the steps after which it begins, expected batch size) of each stage; one without any."""
        if self.batch_schedule is None:
            return ((0.0, self.expected_batch_size),)
        return read_batch_schedule(self.batch_schedule)

    @property
    def mean_batch_size(self) -> float:
        """Examples in a step, on average over the run."""
        sizes = self.batch_sizes
        if len(sizes) == 1:
            return self.expected_batch_size
        starts = [*(round(share * self.num_steps) for share, _ in sizes), self.num_steps]
        spans = zip(starts, starts[1:], sizes, strict=False)
        return sum((after - start) * size for start, after, (_, size) in spans) / self.num_steps

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
        if self.compile and self.physical_batch_size == "auto":
            raise ValueError(
                "physical_batch_size = auto measures what runs without compile, and compile is true: set a "
                "number of rows, or leave out compile"
            )
        if self.low_memory and self.compile:
            raise ValueError("low_memory takes two backwards, and compile = true one: leave out either")
        if self.low_memory and (self.clipping == "per-layer" or self.adapt_per_layer):
            raise ValueError(
                "low_memory would gain nothing: per-layer clipping adds each layer's sum inside its one "
                "backward and keeps nothing. Leave out either"
            )
        if self.low_memory and self.parallel in ("fsdp2", "tp"):
            raise ValueError(
                f"low_memory needs the whole model in one process, and parallel = {self.parallel} leaves a "
                "part to each: leave low_memory out, or set parallel = ddp"
            )
        if math.isinf(self.epsilon) and self.twin:
            raise ValueError(
                "twin is a run without privacy beside a private one; with epsilon = inf leave it out"
            )
        if self.parallel in ("fsdp2", "tp") and (self.compile or self.physical_batch_size == "auto"):
            raise ValueError(
                f"parallel = {self.parallel} takes neither compile = true nor physical_batch_size = auto, "
                "which need the whole model in one process: leave them out, or set parallel = ddp"
            )
        if self.parallel in ("fsdp2", "tp") and self.agc:
            raise ValueError(
                f"agc needs whole weights, and parallel = {self.parallel} leaves a part to each process: "
                "leave agc out, or set parallel = ddp"
            )
        if (self.max_batch_size is None) == (self.sampler == "truncated-poisson"):
            raise ValueError(
                "max_batch_size is a setting of sampler = truncated-poisson, which needs one: sampler is "
                f"{self.sampler} and max_batch_size {self.max_batch_size}"
            )
        if self.batch_schedule is not None and self.sampler != "poisson":
            raise ValueError(
                "batch_schedule is a setting of sampler = poisson, whose steps compose whatever their sizes: "
                f"sampler is {self.sampler}"
            )
        for name, rate in (("lr", self.lr), ("twin_lr", self.twin_lr)):
            if rate > _LARGEST_RATE:
                raise ValueError(f"{name} must be at most {_LARGEST_RATE:g} to fit in the weights' numbers")
        return self

    def ignored(self, settings: Collection[str]) -> list[str]:
        """`momentum` with adam, what only a private run uses with `epsilon = inf`, and the like."""
        problems = super().ignored(settings)
        if "momentum" in settings and self.optimizer != "sgd":
            problems.append(
                f"momentum is a setting of sgd, and optimizer is {self.optimizer!r}: leave it out"
            )
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum):
            problems.append(
                f"nesterov is sgd's momentum, and optimizer is {self.optimizer!r} with momentum = "
                f"{self.momentum:g}: leave it out"
            )
        if self.weight_decay is not None and self.optimizer == "adam":
            problems.append("weight_decay would be ignored by adam: set optimizer = adamw, or leave it out")
        if "expected_batch_size" in settings and self.sampler == "full-batch":
            problems.append(
                "expected_batch_size would be ignored: a full batch is all examples. Leave it out"
            )
        if "expected_batch_size" in settings and self.batch_schedule is not None:
            problems.append(
                "expected_batch_size would be ignored: batch_schedule says the sizes. Leave either out"
            )
        if self.polyak and self.ema == "polyak":
            problems.append("polyak would keep the average twice: ema is polyak. Leave either out")
        if "ema_start" in settings and not (self.ema or self.polyak):
            problems.append("ema_start would be ignored: ema is 0. Leave it out")
        if math.isinf(self.epsilon):
            problems += [
                f"{name} would be ignored: epsilon = inf turns privacy off. Leave it out"
                for name in _IGNORED_WITHOUT_PRIVACY
                if name in settings
            ]
            return problems
        if "twin_lr" in settings and not self.twin:
            problems.append("twin_lr would be ignored: set twin = true as well, or leave it out")
        problems += [
            f"{name} is a setting of {needed} clipping, and clipping is {self.clipping!r}: set clipping = "
            f"{needed!r} as well, or leave it out"
            for name, needed in _OF_CLIPPING.items()
            if name in settings and self.clipping != needed
        ]
        return problems

    def completed(self, settings: Collection[str]) -> Self:
        """Without privacy, `lr` is by default the recipe's `twin_lr`; a schedule's mean is the batch size."""
        if math.isinf(self.epsilon) and "lr" not in settings:
            return self.model_copy(update={"lr": self.twin_lr}).with_mean()
        return self.with_mean()

    def with_mean(self) -> Self:
        """With the schedule's mean as the expected batch size, if there is a schedule."""
        if self.batch_schedule is None:
            return self
        return self.model_copy(update={"expected_batch_size": self.mean_batch_size})
