"""Records every place where a trainable parameter meets the batch, while the model runs as it is.

A torch function mode sees every torch operation of the forward, whichever module or function calls
it, and knows parameters by identity: tied weights, functional uses, subclasses and bare parameters
are all the same to it. A trainable parameter never enters autograd: an operation on it runs with a
detached copy, and what its backward leaves is recorded. So a use that the mode does not see (a
custom autograd function, a scripted module) is found in the autograd graph, and refused.

Room: clip. May import torch, `reticent.errors`, `reticent.rules`.

Words (this file):
    value      a parameter, or something computed from parameters and constants alone
    constant   a tensor that does not depend on the batch, and is no value
    meeting    an operation of a value with a tensor that may depend on the batch
    optional   a meeting that may turn out not to be one: the result of expanding a value, or of
               looking places of it up, may or may not have the example axis
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from reticent.clip._entry import (
    CallKind,
    Entry,
    Key,
    Meet,
    Stage,
    Tap,
    Value,
    Visitor,
)
from reticent.errors import UnsupportedModel
from reticent.rules import OpRule
from reticent.rules._meeting import Meeting
from reticent.rules._ops import ELEMENTWISE, EXPANSIONS, IN_PLACE
from reticent.rules._replay import Call

_HALF = (torch.float16, torch.bfloat16)
_SAME = frozenset("to float double half bfloat16 type type_as contiguous clone alias".split())
_TRANSPOSE = frozenset(("t", "T", "mT", "H", "mH", "transpose", "swapaxes", "permute", "adjoint"))
_LOOKUPS = frozenset(("embedding", "__getitem__", "index_select"))
_LIKE = frozenset("to type_as view_as reshape_as".split())  # of the second argument, only shape or type
_DRAWS = frozenset("rand randn randint randperm normal".split())  # a fresh draw for each example, most often
# Their numbers are sizes, which differ from batch to batch.
_SHAPERS = frozenset(
    (
        "view reshape expand expand_as repeat repeat_interleave tile unflatten broadcast_to zeros ones full "
        "empty arange new_zeros new_ones new_full new_empty rand randn randint randperm split chunk narrow "
        "__getitem__ __setitem__ triu tril pad clamp masked_fill __eq__ __ne__ __lt__ __le__ __gt__ __ge__ "
        "cross_entropy nll_loss one_hot interpolate adaptive_avg_pool2d size item "
    ).split()
)
# Of their numbers, whether one is zero is the same in every batch (a term's weight that is not on yet).
_ARITHMETIC = frozenset(
    "__mul__ __rmul__ __add__ __radd__ __sub__ __rsub__ __truediv__ __rtruediv__ mul add sub div".split()
)
_UNTRACKED = frozenset(
    "detach data grad requires_grad_ retain_grad register_hook share_memory_ item tolist __repr__ __format__ "
    "__deepcopy__ __reduce_ex__ size dim stride numel is_contiguous __len__ untyped_storage data_ptr".split()
)


_NESTED = (list, tuple, dict)  # not `list | tuple | dict`, which would be put together in every call


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors of nested lists, tuples and dicts, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    found: list[Tensor] = []
    if isinstance(tree, _NESTED):
        _find_tensors(tree, found)
    return found


def _find_tensors(tree: Any, found: list[Tensor]) -> None:
    for item in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, _NESTED):
            _find_tensors(item, found)


def _numbers(tree: Any, *, zeros: bool = False) -> tuple[Any, ...]:
    """What else a call's proof holds for: integers, truth values and words (which axis, in training or not).

    Args:
        tree: the call's arguments.
        zeros: of integers, as of other numbers always, only whether they are zero.
    """
    found: list[Any] = []
    for leaf in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(leaf, _NESTED):
            found += _numbers(leaf, zeros=zeros)
        elif isinstance(leaf, float) or (zeros and isinstance(leaf, int)):
            found.append(leaf == 0)
        elif isinstance(leaf, (int, str)):
            found.append(leaf)
    return tuple(found)


def _numbers_of(name: str, args: Any) -> tuple[Any, ...]:
    return () if name in _SHAPERS else _numbers(args, zeros=name in _ARITHMETIC)


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):
        return getattr(getattr(func, "__self__", None), "__name__", name)
    return name


class _WhileAlive(dict[int, Any]):
    """Id of a tensor -> a weak reference to it; gone with the tensor."""

    def __setitem__(self, key: int, tensor: Any) -> None:
        super().__setitem__(key, weakref.ref(tensor, lambda _: self.pop(key, None)))


class Capture(TorchFunctionMode):
    """The mode; active around a forward and its backward (checkpointing runs forwards there).

    Args:
        params: name -> trainable parameter.
        modules: the model's; their frozen parameters, buffers and tensor attributes are constants.
        held: all parameters as the forward uses them, where they come and go: other tensors than values are
            then known while somebody else keeps them, so that gathered memory can be given back.
        rules: operation -> rule.
        not_meetings: keys of optional meetings known not to be any.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        modules: Iterable[nn.Module],
        rules: Mapping[Callable[..., Any], OpRule],
        not_meetings: frozenset[Key],
        held: Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.half = False  # whether some operation gave half precision: autocast's, or a frozen layer's
        self.events: list[Key | str] = []  # what was recorded, and the modules that ended, in order
        self.stage: Stage = Stage()
        self._again: Callable[[], None] | None = None
        self._in_forward = True
        self.trace: int = 0  # hash of the names of all operations of the forward, in order
        self._rules = rules
        self._not_meetings = not_meetings
        self._counts: dict[tuple[str, str], int] = {}
        self._forward_counts: dict[tuple[str, str], int] = {}
        self._was_none: dict[Any, bool] = {}  # optional meeting, without its number -> none, each time
        self._optional_key: Key | None = None
        self._optional_is_constant = False
        self.leaves: dict[str, Tensor] = {}
        self._values: dict[int, Value] = {}
        self._alive: list[Tensor] = []  # an id is only a name while its tensor lives
        self._constants: MutableMapping[int, Any] = {} if held is None else _WhileAlive()
        self._overwritten: set[int] = set()  # storages of constants that the batch was written into
        self.anchor: Tensor = torch.zeros((), requires_grad=True)
        for name, param in params.items():
            leaf = param.detach().requires_grad_()
            value = Value(leaf, frozenset((name,)), name)
            self.leaves[name] = leaf
            self._values[id(param)] = self._values[id(leaf)] = value
            self._alive += [param, leaf]
        for tensor in (*_model_tensors(modules), *(held or ())):
            if id(tensor) not in self._values:
                self._constants[id(tensor)] = tensor

    def begin_backward(self, visitor: Visitor, again: Callable[[], None] | None = None) -> None:
        """Start a backward pass: what it recomputes gets the same names in each pass.

        Args:
            visitor: sees the gradients.
            again: called before each torch function that the backward runs: of a part that is run once more
                (activation checkpointing), or of an operation's own backward.
        """
        if self._in_forward:
            self._forward_counts = dict(self._counts)
            self._in_forward = False
        self._counts = dict(self._forward_counts)
        self.stage.visitor, self._again = visitor, again

    # -- the mode -----------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.stage.paused:
            return func(*args, **kwargs)
        if self._again is not None:
            self._again()
        if self._in_forward:
            name = _name(func)
            self.trace = hash((self.trace, name, _numbers_of(name, (args, kwargs))))
        tensors = _tensors(args)
        if kwargs:
            tensors += _tensors(kwargs)
        values = self._values
        if torch.is_grad_enabled() and any(id(t) in values for t in tensors):
            out = self._on_value(func, args, kwargs, tensors)
        else:
            out = self._plain(func, args, kwargs, tensors[:1] if _name(func) in _LIKE else tensors)
        self.half |= isinstance(out, Tensor) and out.dtype in _HALF
        return out

    def _plain(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]
    ) -> Any:
        """A call that no gradient of a value can come through."""
        out = func(*args, **kwargs)
        if not tensors and _name(func) in _DRAWS:
            return out
        if all(id(t) in self._values or self._is_constant(t) for t in tensors):
            for t in _tensors(out):
                if id(t) not in self._values:
                    self._constants[id(t)] = t
        elif tensors and id(tensors[0]) in self._constants and _in_place(func, _name(func)):
            self._overwritten.add(_address(tensors[0]))
            self._overwritten.discard(0)
        return out

    def _is_constant(self, t: Tensor) -> bool:
        if id(t) not in self._constants:
            return False
        return not self._overwritten or _address(t) not in self._overwritten

    def _on_value(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]
    ) -> Any:
        name = _name(func)
        if torch._C._are_functorch_transforms_active():
            raise UnsupportedModel(
                f"A parameter is used by {name} inside a transform of torch.func (vmap, grad, jvp), where "
                "its per-example gradient cannot be seen. Write it without the transform, or use "
                "method='loop'.",
                code="hidden-use",
            )
        operands = tensors[:1] if name in _LIKE or func in EXPANSIONS else tensors
        if name in _UNTRACKED or not any(id(t) in self._values for t in operands):
            return self._plain(func, args, kwargs, operands)
        tensors = operands if name in _LIKE else tensors
        optional = func in EXPANSIONS or (
            name in _LOOKUPS
            and func in self._rules
            and not any(t.requires_grad for t in tensors if id(t) not in self._values)
        )
        if optional:
            return self._maybe_meet(func, name, args, kwargs, tensors)
        if all(id(t) in self._values or self._is_constant(t) for t in tensors):
            return self._derive(func, name, args, kwargs)
        return self._meet(func, name, args, kwargs)

    def _maybe_meet(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]
    ) -> Any:
        """A look-up or expansion: a meeting, unless that was found not to hold."""
        key = self._next_key(name, [self._values[id(t)] for t in tensors if id(t) in self._values])
        none = key in self._not_meetings
        # What a backward runs again has another key, may never receive a gradient that would prove anything,
        # and must save the tensors that the forward saved: it is what it was there.
        alike = (key[:2], tuple(t.shape for t in tensors), _numbers((args, kwargs)))
        if self._in_forward:
            self._was_none[alike] = none and self._was_none.get(alike, True)
        elif self._was_none.get(alike, False):
            none = True
        if none:
            return self._derive(func, name, args, kwargs)
        constant = all(id(t) in self._values or self._is_constant(t) for t in tensors)
        self._optional_key, self._optional_is_constant = key, constant
        try:
            if func in EXPANSIONS:
                return self._replayed(func, name, args, kwargs)
            out = self._rules[func](self, args, kwargs)
        finally:
            self._optional_key, self._optional_is_constant = None, False
        if out is not NotImplemented:
            return out
        return (
            self._derive(func, name, args, kwargs) if constant else self._replayed(func, name, args, kwargs)
        )

    def _derive(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A value computed from values and constants."""
        sources: list[Value] = []

        def swap(leaf: Any) -> Any:
            value = self._values.get(id(leaf)) if isinstance(leaf, Tensor) else None
            if value is None:
                return leaf
            sources.append(value)
            return value.graph

        source_args, source_kwargs = args, kwargs
        flat, spec = tree_flatten((args, kwargs))
        args, kwargs = tree_unflatten([swap(leaf) for leaf in flat], spec)
        # A value's graph is its own: a checkpoint around it would run again while a backward visits.
        with saved_tensors_hooks(_with_version, _unchanged):
            out = func(*args, **kwargs)
        roots = frozenset().union(*(s.roots for s in sources))
        outs = _tensors(out)
        if _in_place(func, name):
            written = _tensors(args)[0]
            outs = [written] if written._base is None else [written, written._base]
            for t in outs:
                old = self._values.get(id(t))
                if old is not None:  # no longer a plain copy of anything
                    roots |= old.roots
                    old.roots, old.source = roots, None
        for t in outs:
            if id(t) in self._values:
                continue
            if not t.requires_grad:
                self._constants[id(t)] = t
                continue
            value = Value(t, roots)
            if len(sources) == 1 and isinstance(out, Tensor):
                source = sources[0]
                if name in _SAME and t.shape == source.graph.shape:
                    value.source, value.step = source, "same"
                elif func is F.embedding and isinstance(source_args[0], Tensor):
                    value.source, value.step, value.ids = source, "gather", source_args[0]
                    value.padding_idx = _padding_idx(source_args, source_kwargs, len(source.graph))
                elif name in _TRANSPOSE and _is_transpose(t, source.graph):
                    value.source, value.step = source, "transpose"
            self._values[id(t)] = value
            self._alive.append(t)
        return out

    # -- meetings ------------------------------------------------------------------------------

    def _meet(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = self._rules.get(func)
        if rule is not None:
            out = rule(self, args, kwargs)
            if out is not NotImplemented:
                return out
        return self._replayed(func, name, args, kwargs)

    def _next_key(self, name: str, values: Sequence[Value]) -> Key:
        label = "+".join(sorted(frozenset().union(*(v.roots for v in values))))
        count = self._counts[label, name] = self._counts.get((label, name), -1) + 1
        return label, name, count

    def _new_entry(self, name: str, values: dict[Any, Value]) -> Entry:
        key = self._optional_key or self._next_key(name, list(values.values()))
        entry = Entry(key, self._optional_key is not None, values, constant=self._optional_is_constant)
        if self._in_forward:  # what a backward runs again is held by nobody
            self.entries.append(entry)
        self.events.append(key)
        return entry

    def _replayed(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A meeting without rule: runs as it is, and is run again for its forms."""
        flat, spec = tree_flatten((args, kwargs))
        where = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor)]
        tensors = [flat[i] for i in where]
        trainable = tuple(j for j, t in enumerate(tensors) if id(t) in self._values)
        in_place = _in_place(func, name)
        if in_place and 0 in trainable:
            label = "+".join(
                sorted(frozenset().union(*(self._values[id(tensors[j])].roots for j in trainable)))
            )
            raise UnsupportedModel(
                f"The in-place operation {name} writes to parameter '{label}', or to something computed from "
                "it. Write it out of place, or freeze the parameter with requires_grad_(False).",
                code="in-place-parameter",
            )
        plain = [self._values[id(t)].graph.detach() if j in trainable else t for j, t in enumerate(tensors)]
        kept = [t.detach() for t in plain]
        if in_place:
            kept[0] = kept[0].clone()

        def run(new: Sequence[Tensor]) -> tuple[Tensor, ...]:
            leaves = list(flat)
            for i, t in zip(where, new, strict=True):
                leaves[i] = t
            if in_place:
                leaves[where[0]] = leaves[where[0]].clone()
            new_args, new_kwargs = tree_unflatten(leaves, spec)
            result = func(*new_args, **new_kwargs)
            return (leaves[where[0]],) if in_place else tuple(_tensors(result))

        leaves = list(flat)
        for i, t in zip(where, plain, strict=True):
            leaves[i] = t
        new_args, new_kwargs = tree_unflatten(leaves, spec)
        out = func(*new_args, **new_kwargs)
        entry = self._new_entry(name, {j: self._values[id(tensors[j])] for j in trainable})
        constant = tuple(id(t) in self._constants for t in tensors)
        entry.call = Call(run, tuple(kept), trainable, constant, tuple(t._version for t in kept))
        if func in ELEMENTWISE:
            entry.kind = CallKind.ELEMENTWISE
        elif func in EXPANSIONS and len(trainable) == 1:
            entry.kind = CallKind.EXPANSION
        outs = [tensors[0]] if in_place else _tensors(out)
        same = {id(t) for t in tensors} if not in_place else set()  # an argument, handed on as it is
        if entry.kind is CallKind.OTHER:
            entry.outputs = tuple(t.detach().clone() for t in outs)  # it may be overwritten later
        tapped = [
            (i, t)
            for i, t in enumerate(outs)
            if (t.is_floating_point() or t.is_complex()) and id(t) not in same
        ]
        entry.shapes = {i: t.shape for i, t in tapped}
        swapped = {id(t): self._tapped(entry, i, t, in_place) for i, t in tapped}
        flat_out, out_spec = tree_flatten(out)
        return tree_unflatten([swapped.get(id(t), t) for t in flat_out], out_spec)

    def _tapped(self, entry: Entry, index: int, y: Tensor, in_place: bool) -> Tensor:
        stage = self.stage
        written_view = in_place and y._is_view()  # the gradient comes through its base, past a hook
        if y.requires_grad and not written_view:

            def hook(g: Tensor) -> None:
                stage.receive(entry, index, (), g)

            y.register_hook(hook)
            return y
        copy = y._is_view() and not written_view
        return Tap.apply(entry, stage, index, y.clone() if copy else y, self.anchor)

    # -- what a rule may ask (see rules.Recorder) ------------------------------------------------

    def is_trainable(self, value: object) -> bool:
        """See `Recorder`."""
        return id(value) in self._values

    def record(self, meeting: Meeting, roles: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """See `Recorder`."""
        name = type(meeting).__name__.removesuffix("Meeting")
        entry = self._new_entry(name, {role: self._values[id(t)] for role, t in roles.items()})
        entry.meeting = meeting
        return Meet.apply(entry, self.stage, self.anchor, *inputs)

    def call(self, func: Callable[..., Any], *args: Any) -> Any:
        """See `Recorder`."""
        return self.__torch_function__(func, (), args, {})

    def inline(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `Recorder`."""
        with self:
            return func(*args, **kwargs)


def _with_version(t: Tensor) -> tuple[Tensor, int]:
    """Without its graph, of which an operation that keeps its own output would be part for ever."""
    return t.detach(), t._version


def _unchanged(kept: tuple[Tensor, int]) -> Tensor:
    """What autograd checks by itself only where no hooks are."""
    t, version = kept
    if t._version != version:
        raise UnsupportedModel(
            "Something computed from parameters alone was overwritten by a later in-place operation, and its "
            "gradient needs it. Write that operation out of place.",
            code="in-place-parameter",
        )
    return t


def _address(t: Tensor) -> int:
    """Where its memory is; 0 if it has none (a wrapper of shards), or has given it back for a while."""
    storage = t.untyped_storage()
    try:
        return storage.data_ptr() if storage.nbytes() else 0
    except RuntimeError:
        return 0


def _padding_idx(args: tuple[Any, ...], kwargs: dict[str, Any], num_rows: int) -> int | None:
    """The third argument of `torch.nn.functional.embedding`."""
    index = args[2] if len(args) > 2 else kwargs.get("padding_idx")
    return None if index is None else index % num_rows


def _in_place(func: Any, name: str) -> bool:
    return name == "__setitem__" or func in IN_PLACE or (name[-1] == "_" and name[-2:] != "__")


def _is_transpose(t: Tensor, of: Tensor) -> bool:
    return t.dim() == of.dim() == 2 and t.shape == of.shape[::-1] and t.stride() == of.stride()[::-1]


def _model_tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from _tensors([*module._parameters.values()])  # of a scripted module no dict
        yield from _tensors([*module._buffers.values()])
        for attribute in vars(module).values():
            if isinstance(attribute, Tensor):
                yield attribute
