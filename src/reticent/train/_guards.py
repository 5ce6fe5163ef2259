"""What must hold of a model and its optimizer before, during and after every private step.

Room: train. May import torch, `reticent.dist` and the floors below.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Final

import torch.distributed
from torch import nn
from torch.optim import Optimizer

from reticent.dist import Ranks
from reticent.errors import ConfigError, StepError, UnsupportedModel

_PARALLEL: Final = frozenset(
    {"DataParallel", "DeepSpeedEngine", "DistributedDataParallel", "FullyShardedDataParallel"}
)
# Where other libraries' stand-ins for an optimizer keep the real one (Accelerate, Lightning, Opacus).
_WRAPPED_IN: Final = ("optimizer", "_optimizer", "original_optimizer")
_SHARDED: Final = frozenset({"DTensor", "ShardedTensor", "FlatParameter"})
_PIPELINE: Final = frozenset({"_PipelineStageBase", "_PipelineSchedule"})
_WAY_OUT: Final = (
    "Give every rank the whole, unwrapped model and PrivateStep(ranks=reticent.dist.Replicas()), or one that "
    "fully_shard was applied to and ranks=reticent.dist.Shards(); or train in a single process."
)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, for every parameter that requires a gradient; shared ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that could update from anything but the noised gradient, or not at all.

    Raises:
        ConfigError[optimizer-type]: not a `torch.optim.Optimizer`, or a wrapper around one.
        ConfigError[optimizer-closure]: its `step` needs a closure (LBFGS): it would call the loss
            again and update from a gradient without noise.
        ConfigError[nothing-to-train]: the model has no trainable parameter.
        ConfigError[optimizer-parameters]: it holds other parameters than the model's trainable ones.
        ConfigError[optimizer-foreach]: it updates slices and whole parameters in one list.
    """
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"The optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.",
            code="optimizer-type",
        )
    if any(isinstance(vars(optimizer).get(name), Optimizer) for name in _WRAPPED_IN):
        raise ConfigError(
            f"The optimizer is a {type(optimizer).__name__}, a wrapper around another, which may skip, scale "
            "or clip the noised gradient. Give the optimizer itself, and do not let Accelerate or another "
            "library prepare it.",
            code="optimizer-type",
        )
    if _needs_closure(optimizer):
        raise ConfigError(
            f"{type(optimizer).__name__}.step needs a closure, which computes gradients again without "
            "noise. Use an optimizer that steps from the gradient it is given, e.g. SGD or Adam.",
            code="optimizer-closure",
        )
    wanted = trainable(model)
    if not wanted:
        raise ConfigError(
            f"{type(model).__name__} has no parameter with requires_grad=True: nothing to train.",
            code="nothing-to-train",
        )
    _check_parameters(wanted, optimizer)
    _refuse_mixed_lists(wanted, optimizer)


def _refuse_mixed_lists(params: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Refuse an optimizer that updates lists: torch takes slices in them or whole tensors, not both."""
    kinds = {type(p.data).__name__ in _SHARDED for p in params.values()}
    on_cpu = all(p.device.type == "cpu" for p in params.values())
    lists = [
        name
        for group in optimizer.param_groups
        for name in ("foreach", "fused")
        if group.get(name) or (name == "foreach" and group.get(name, False) is None and not on_cpu)
    ]
    if len(kinds) == 2 and lists:
        raise ConfigError(
            f"Some of the model's parameters are slices (DTensor) and some are whole, and {lists[0]} updates "
            "them in one list, which torch refuses. Give the optimizer foreach=False and no fused=True.",
            code="optimizer-foreach",
        )


def refuse_pipeline(model: object) -> None:
    """Refuse a stage or schedule of `torch.distributed.pipelining`.

    Raises:
        ConfigError[pipeline-parallel]: an example's norm is over all stages, and no stage knows it before the
            backward of the first is done.
    """
    if _PIPELINE & {kind.__name__ for kind in type(model).__mro__}:
        raise ConfigError(
            f"{type(model).__name__}: pipeline parallel is not supported, because an example is clipped by "
            "its norm over all stages, of which each knows its own. Give every rank the same model: "
            "ranks=reticent.dist.Shards() (parallel=fsdp2) if it does not fit on one.",
            code="pipeline-parallel",
        )


def refuse_shards(model: nn.Module, ranks: Ranks, *, show_norms: bool, other_engine: bool) -> None:
    """Refuse training that is spread over processes in a way that `ranks` does not know of.

    Raises:
        ConfigError[several-ranks]: this process belongs to a group of several and `ranks` does not, or the
            model's parameters are shards, or the model is wrapped for training on several devices, or
            norms are to be shown, of which each rank has some; or a compiled engine, or one of the caller's,
            shall clip a model of shards.
    """
    dist = torch.distributed
    size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    wrappers = [type(m).__name__ for m in model.modules() if type(m).__name__ in _PARALLEL]
    sharded = [name for name, p in model.named_parameters() if type(p.data).__name__ in _SHARDED]
    problems = [
        (size > 1 and ranks.size == 1, f"this is one of {size} processes of a group"),
        (bool(wrappers), f"the model is wrapped in {wrappers[:1]}"),
        (bool(sharded) and not ranks.shards, f"parameters are shards of several ranks: {sharded[:1]}"),
        (show_norms and ranks.size > 1, "each rank would show the norms of its own examples"),
        (other_engine and ranks.shards, "a model of shards takes PrivateStep's own engine, not compiled"),
    ]
    for found, problem in problems:
        if found:
            raise ConfigError(
                f"Refused: {problem}. By itself each process would draw its own batch and add its own noise, "
                f"and the ledger would hold one of them. {_WAY_OUT}",
                code="several-ranks",
            )


def _refuse_hooks(params: Mapping[str, nn.Parameter]) -> None:
    """Refuse hooks on shards, which no clip engine sees: they would get gradients of checked examples."""
    hooked = [n for n, p in params.items() if p._backward_hooks or p._post_accumulate_grad_hooks]
    if hooked:
        raise UnsupportedModel(
            f"Parameters {_list(hooked)} have gradient hooks, which would see gradients without clipping and "
            "noise, or none. Remove them, and apply what they do to the optimizer's gradient.",
            code="parameter-hook",
        )


def _needs_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _check_parameters(wanted: dict[str, nn.Parameter], optimizer: Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in wanted.items() if id(p) not in held]
    num_foreign = len(held - {id(p) for p in wanted.values()})
    if missing or num_foreign:
        raise ConfigError(
            "The optimizer must hold exactly the model's trainable parameters: "
            f"missing {_list(missing)}; {num_foreign} held that are not trainable parameters of it. Build "
            "it from [p for p in model.parameters() if p.requires_grad], and freeze what it should not "
            "train with requires_grad_(False).",
            code="optimizer-parameters",
        )


class Watch:
    """What a model looked like at first; tells when it is not that any more."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        check_optimizer(model, optimizer)
        self._model, self._optimizer = model, optimizer
        self._trainable = trainable(model)

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, as they were when the run began."""
        return self._trainable

    def check_parameters(self) -> None:
        """Refuse a model whose trainable parameters are not those the run began with.

        Raises:
            StepError[parameters-changed]: frozen, unfrozen, added, removed or replaced parameters.
            UnsupportedModel[parameter-hook]: one has a gradient hook.
            ConfigError[optimizer-parameters]: the optimizer holds others now.
        """
        now = trainable(self._model)
        _refuse_hooks(now)
        changed = sorted(
            name
            for name in self._trainable.keys() | now.keys()
            if self._trainable.get(name) is not now.get(name)
        )
        if changed:
            raise StepError(
                f"The trainable parameters changed during the run: {_list(changed)}. Freeze or unfreeze "
                "before PrivateStep is made; to change them, make a new one on the same ledger.",
                code="parameters-changed",
            )
        _check_parameters(now, self._optimizer)

    def check_no_gradients(self) -> None:
        """Refuse gradients that someone else computed: they have no bound and no noise.

        Raises:
            StepError[raw-gradient]: a parameter has a `.grad`.
        """
        found = [name for name, p in self._trainable.items() if p.grad is not None]
        if found:
            raise StepError(
                f"Parameters {_list(found)} hold a gradient that no private step made. Inside the block call "
                "step.backward(loss_per_example, chunk) only, never loss.backward(); clear old gradients "
                "with optimizer.zero_grad().",
                code="raw-gradient",
            )


def _list(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return (shown or "none") + (f" and {len(names) - 5} more" if len(names) > 5 else "")
