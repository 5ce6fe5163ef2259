"""Layers of which each rank has a slice (tensor parallel), and how a model's are cut.

A matrix is cut along its outputs ("column parallel") or its inputs ("row parallel") [1]. What goes into a
layer and comes out of it is whole on every rank, so that any model around it stays as it is; but in blocks
known by name, what lies between layers cut along outputs and the layer after them stays in slices (an
attention's heads, an MLP's hidden units). A parameter's slice is a DTensor in the model, and the plain tensor
inside it while the layer runs.

Room: dist. May import torch and `reticent.errors`.

Sources:
    [1] Shoeybi et al. 2019, arXiv:1909.08053.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils.weak import WeakIdKeyDictionary

from ._mappings import Over, copied, gathered, split, summed

_INPUTS, _OUTPUTS = "inputs", "outputs"


class Slices:
    """The plain tensors inside a model's DTensors, as parameters that forwards use; always the same ones."""

    def __init__(self) -> None:
        self._made: Any = WeakIdKeyDictionary()
        self.all_whole = False

    @contextmanager
    def between_layers_whole(self) -> Iterator[None]:
        """Nothing stays in slices between layers: right for any model, and slower."""
        self.all_whole = True
        try:
            yield
        finally:
            self.all_whole = False

    def of(self, p: nn.Parameter) -> nn.Parameter:
        """The rank's slice of a parameter, which shares its memory."""
        with torch.no_grad():
            data: Any = p.data
            local = data.to_local() if isinstance(data, DTensor) else data
        made = self._made.get(p)
        if made is None or made.data_ptr() != local.data_ptr() or made.dtype != local.dtype:
            made = self._made[p] = nn.Parameter(local, requires_grad=p.requires_grad)
        made.requires_grad_(p.requires_grad)
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """How a layer is cut.

    Args:
        along: "outputs" or "inputs".
        over: the ranks that have a slice each.
        slices: where the tensors are.
        paired: outputs stay in slices, or inputs come in slices.
    """

    along: str
    over: Any  # `Over`, and of a model that takes steps, `Replicas`
    slices: Slices
    paired: bool

    def enter(self, x: Tensor) -> Tensor:
        """What the rank's slice of the layer is given."""
        if self.along == _OUTPUTS:
            return copied(x, self.over)
        return x if self.paired and not self.slices.all_whole else split(x, self.over)

    def leave(self, y: Tensor) -> Tensor:
        """What the layer returns, from what the rank's slice of it does."""
        if self.along == _INPUTS:
            return summed(y, self.over)
        return y if self.paired and not self.slices.all_whole else gathered(y, self.over)


def _linear(self: Any, x: Tensor) -> Tensor:
    """`nn.Linear`: weight (O, I)."""
    cut: Cut = self._cut
    weight = cut.slices.of(self.weight)
    if cut.along == _OUTPUTS:
        bias = None if self.bias is None else cut.slices.of(self.bias)
        return cut.leave(F.linear(cut.enter(x), weight, bias))
    y = cut.leave(F.linear(cut.enter(x), weight))
    return y if self.bias is None else y + self.bias


def _conv1d(self: Any, x: Tensor) -> Tensor:
    """Hugging Face's `Conv1D`: weight (I, O)."""
    cut: Cut = self._cut
    weight = cut.slices.of(self.weight)
    shape, flat = x.shape[:-1], cut.enter(x).reshape(-1, weight.shape[0])
    if cut.along == _OUTPUTS:
        y = torch.addmm(cut.slices.of(self.bias), flat, weight)
        return cut.leave(y.view(*shape, weight.shape[1]))
    return cut.leave((flat @ weight).view(*shape, weight.shape[1])) + self.bias


def _embedding(self: Any, ids: Tensor) -> Tensor:
    """`nn.Embedding`: weight (V, O)."""
    cut: Cut = self._cut
    options = (self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse)
    return cut.leave(F.embedding(ids, cut.slices.of(self.weight), *options))


@dataclass(frozen=True, slots=True)
class _Kind:
    """A layer that can be cut: its forward, and the weight's axis of outputs and of inputs (None: not so)."""

    forward: Callable[[Any, Tensor], Tensor]
    outputs: int
    inputs: int | None

    def along(self, axis: int) -> str | None:
        """What is cut along a weight's axis."""
        return _OUTPUTS if axis == self.outputs else _INPUTS if axis == self.inputs else None


_KINDS: Final[Mapping[tuple[str, str], _Kind]] = {
    ("torch.nn.modules.linear", "Linear"): _Kind(_linear, 0, 1),
    ("transformers.pytorch_utils", "Conv1D"): _Kind(_conv1d, 1, 0),
    ("torch.nn.modules.sparse", "Embedding"): _Kind(_embedding, 1, None),
}


@dataclass(frozen=True, slots=True)
class _Pair:
    """Layers cut along their outputs, and the one that takes what comes of these, cut along its inputs."""

    first: tuple[str, ...]
    then: str
    heads: bool = False  # between them are heads of `head_dim`, each of which is on one rank


_QKV: Final = _Pair(("q_proj", "k_proj", "v_proj"), "o_proj", heads=True)
_PAIRS: Final[Mapping[tuple[str, str], _Pair]] = {
    ("transformers.models.llama.modeling_llama", "LlamaAttention"): _QKV,
    ("transformers.models.llama.modeling_llama", "LlamaMLP"): _Pair(("gate_proj", "up_proj"), "down_proj"),
    ("transformers.models.vit.modeling_vit", "ViTAttention"): _QKV,
    ("transformers.models.vit.modeling_vit", "ViTMLP"): _Pair(("fc1",), "fc2"),
    ("transformers.models.gpt2.modeling_gpt2", "GPT2MLP"): _Pair(("c_fc",), "c_proj"),
}


def _kind(module: nn.Module) -> _Kind | None:
    """By exact type, as a subclass may compute something else; a forward of the object's own does too."""
    plain = "forward" not in vars(module) and isinstance(module._parameters.get("weight"), nn.Parameter)
    return _KINDS.get((type(module).__module__, type(module).__name__)) if plain else None


def cut_of(module: nn.Module) -> Cut | None:
    """How a layer is cut, if it is."""
    return vars(module).get("_cut")


def plan_cuts(model: nn.Module, size: int) -> dict[nn.Module, int]:
    """Layer -> axis of its weight to cut into `size` slices, for every layer that can be cut evenly.

    A weight that several layers share is cut along an axis that suits all of them; outputs first.
    """
    users = _users(model)
    found: dict[nn.Module, int] = {}
    for uses in users.values():
        axis = _common_axis(uses, users, size)
        if axis is not None:
            found |= {module: axis for module, _ in uses}
    return found


def plan_pairs(model: nn.Module, cuts: dict[nn.Module, int], size: int) -> set[nn.Module]:
    """The layers between which nothing need be whole; their cuts are set to fit.

    Not where heads would be cut, or where each rank would draw the same dropout for other heads.
    """
    paired, users = set[nn.Module](), _users(model)
    for block in model.modules():
        pair = _PAIRS.get((type(block).__module__, type(block).__name__))
        if pair is None:
            continue
        first, then = [getattr(block, name, None) for name in pair.first], getattr(block, pair.then, None)
        members = [m for m in (*first, then) if isinstance(m, nn.Module) and m in cuts]
        step = size * int(getattr(block, "head_dim", 0)) if pair.heads else size
        shared = any(len(users[id(p)]) > 1 for m in members for p in m.parameters(recurse=False))
        if (
            len(members) != len(first) + 1
            or shared
            or step == 0
            or getattr(block, "attention_dropout", 0.0) != 0.0
        ):
            continue
        kinds = [_KINDS[type(m).__module__, type(m).__name__] for m in members]
        outs = [m.weight.shape[k.outputs] for m, k in zip(members, kinds, strict=True)]  # type: ignore[union-attr]
        width = members[-1].weight.shape[1 - kinds[-1].outputs]  # type: ignore[union-attr]
        if any(out % step for out in outs[:-1]) or outs[0] != width or kinds[-1].inputs is None:
            continue
        cuts |= {m: k.outputs for m, k in zip(members[:-1], kinds, strict=False)}
        cuts[members[-1]] = kinds[-1].inputs
        paired |= set(members)
    return paired


def _users(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Id of a parameter -> the modules that have it, and its name there."""
    users: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                users.setdefault(id(p), []).append((module, name))
    return users


def _common_axis(
    uses: list[tuple[nn.Module, str]], users: Mapping[int, list[tuple[nn.Module, str]]], size: int
) -> int | None:
    kinds = [_kind(module) if name == "weight" else None for module, name in uses]
    weight = uses[0][0]._parameters[uses[0][1]]
    if weight is None or weight.dim() != 2:
        return None
    axes = [0, 1] if kinds[0] is None else [kinds[0].outputs, 1 - kinds[0].outputs]
    for axis in axes:
        ways = [None if kind is None else kind.along(axis) for kind in kinds]
        alone = all(
            way != _OUTPUTS or _is_of_one(module._parameters.get("bias"), users)
            for way, (module, _) in zip(ways, uses, strict=True)
        )
        if None not in ways and alone and weight.shape[axis] % size == 0 < weight.shape[axis]:
            return axis
    return None


def _is_of_one(bias: nn.Parameter | None, users: Mapping[int, list[tuple[nn.Module, str]]]) -> bool:
    return bias is None or len(users[id(bias)]) == 1


def spread(p: Tensor, axis: int, mesh: DeviceMesh) -> Tensor:
    """This rank's slice of a tensor that every rank has whole, as a DTensor."""
    whole = distribute_tensor(p, mesh, [Shard(axis)], src_data_rank=None)
    return DTensor.from_local(  # a copy: a view would keep the whole alive
        whole.to_local().clone(), mesh, [Shard(axis)], run_check=False, shape=p.shape, stride=p.stride()
    )


def apply_cuts(
    cuts: Mapping[nn.Module, int], paired: set[nn.Module], over: Over, part: Callable[[Tensor, int], Tensor]
) -> None:
    """Replace parameters by this rank's slices, and forwards by those that know of them.

    Args:
        cuts: layer -> axis of its weight.
        paired: see `plan_pairs`.
        over: the ranks.
        part: makes this rank's slice of a whole tensor along an axis.
    """
    slices, made = Slices(), {}

    def sliced(p: nn.Parameter, axis: int) -> nn.Parameter:
        if id(p) not in made:
            with torch.no_grad():
                made[id(p)] = (nn.Parameter(part(p.detach(), axis), requires_grad=p.requires_grad), p)
        return made[id(p)][0]

    for module, axis in cuts.items():
        kind = _kind(module)
        assert kind is not None
        along = kind.along(axis)
        assert along is not None
        bias = module._parameters.get("bias")
        module._parameters["weight"] = sliced(module._parameters["weight"], axis)  # type: ignore[arg-type]
        if bias is not None and along == _OUTPUTS:
            module._parameters["bias"] = sliced(bias, 0)
        # Not by hooks: what the user's hooks see is whole.
        module.__class__ = type(f"Sliced{type(module).__name__}", (type(module),), {"forward": kind.forward})
        vars(module)["_cut"] = Cut(along, over, slices, module in paired)
