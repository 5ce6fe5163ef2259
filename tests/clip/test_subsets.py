"""Any set of trainable parameters on Hugging Face models: exact, and frozen layers cost nothing."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reticent as rt
from reticent.clip import _engine
from tests.support import hf, oracle
from tests.support.case import Problem
from tests.support.judge import assert_close, median_norm

MODELS = ("gpt2-tied", "bert-classifier", "llama", "t5", "vit")
BIASED = ("gpt2-tied", "bert-classifier", "vit")


def train_only(model: nn.Module, chosen: Callable[[str], bool]) -> set[str]:
    """Freeze all parameters but the chosen ones; returns the names of those."""
    for name, p in model.named_parameters():
        p.requires_grad_(chosen(name))
    return {name for name, p in model.named_parameters() if p.requires_grad}


def last_layer(model: nn.Module) -> Callable[[str], bool]:
    """Of the last linear layer: the head."""
    name = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    return lambda parameter: parameter.rpartition(".")[0] == name


def at_random(seed: int, share: float) -> Callable[[str], bool]:
    return lambda name: random.Random(f"{seed} {name}").random() < share


def check_exact(problem: Problem, method: str = "book-keeping") -> rt.ClipEngine:
    max_norm = median_norm(problem) or 1.0
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, max_norm)
    engine = rt.ClipEngine(problem.model, max_norm=max_norm, method=method)
    engine.check(problem.losses, problem.batch)
    for _ in range(2):  # with proofs, and from what is proven
        got = engine.clipped_sum(problem.losses, problem.batch)
        assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-10)
    return engine


@pytest.mark.parametrize("name", BIASED)
def test_biases_alone_are_exact(name: str) -> None:
    problem = hf.named(name).build(0, torch.float64)
    trained = train_only(problem.model, lambda parameter: parameter.endswith(".bias"))
    engine = check_exact(problem)
    idle = {n for n in trained if n.endswith(hf.KEY_BIAS)}
    assert trained - idle <= {layer.name for layer in engine.explain().layers} <= trained


@pytest.mark.parametrize("name", MODELS)
def test_the_last_layer_alone_is_exact(name: str) -> None:
    problem = hf.named(name).build(0, torch.float64)
    trained = train_only(problem.model, last_layer(problem.model))
    if not trained:  # the head is the embedding, under the embedding's name
        trained = train_only(problem.model, lambda parameter: "wte" in parameter or "shared" in parameter)
    engine = check_exact(problem)
    assert {layer.name for layer in engine.explain().layers} == trained


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MODELS)
def test_any_subset_is_exact(name: str, seed: int) -> None:
    problem = hf.named(name).build(seed, torch.float64)
    trained = train_only(problem.model, at_random(seed, (0.1, 0.3, 0.5, 0.8)[seed]))
    engine = check_exact(problem, method=("book-keeping", "ghost")[seed % 2])
    assert {layer.name for layer in engine.explain().layers} <= trained


# -- what frozen layers cost --------------------------------------------------------------------------


class Saved:
    """Bytes that a forward leaves for the backward, without the model's own tensors."""

    def __init__(self, problem: Problem) -> None:
        self._losses = problem.losses
        tensors = [*problem.model.parameters(), *problem.model.buffers()]
        self._own = {t.untyped_storage()._cdata for t in tensors}
        self._found: dict[int, torch.UntypedStorage] = {}

    @property
    def num_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._found.values())

    def losses(self, batch: object) -> Tensor:
        self._found = {}
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t):
            return self._losses(batch)

    def _pack(self, t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in self._own:
            self._found[storage._cdata] = storage
        return t


def saved_bytes(problem: Problem) -> tuple[int, int]:
    """What plain autograd's forward saves, and what the engine's saves, with the same parameters frozen."""
    saved = Saved(problem)
    saved.losses(problem.batch)
    plain = saved.num_bytes
    engine = rt.ClipEngine(problem.model, max_norm=1.0)
    engine.clipped_sum(saved.losses, problem.batch)
    return plain, saved.num_bytes


def recorded(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """For each operation that the engine recorded, the parameters in it."""
    captures = []

    class Remembered(_engine.Capture):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            captures.append(self)

    monkeypatch.setattr(_engine, "Capture", Remembered)
    rt.ClipEngine(problem.model, max_norm=1.0).clipped_sum(problem.losses, problem.batch)
    return [entry.roots for entry in captures[-1].entries]


KINDS: dict[str, Callable[[nn.Module], Callable[[str], bool]]] = {
    "biases": lambda model: lambda name: name.endswith(".bias"),
    "head": last_layer,
    "attention": lambda model: lambda name: "att" in name.lower(),
    "norms": lambda model: lambda name: "norm" in name.lower() or "ln_" in name,
    "everything": lambda model: lambda name: True,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_forward_saves_no_more_than_plain_autograd_with_the_same_layers_frozen(
    name: str, kind: str
) -> None:
    problem = hf.named(name).build(0, torch.float32)
    if not train_only(problem.model, KINDS[kind](problem.model)):
        pytest.skip("the model has none of these")
    plain, engine = saved_bytes(problem)
    assert 0 < engine <= 1.02 * plain


@pytest.mark.parametrize("name", MODELS)
def test_freezing_saves_memory_by_the_same_measure(name: str) -> None:
    sizes = []
    for chosen in (last_layer, lambda model: lambda parameter: True):
        problem = hf.named(name).build(0, torch.float32)
        if train_only(problem.model, chosen(problem.model)):
            sizes.append(saved_bytes(problem)[1])
    assert len(sizes) == 1 or sizes[0] < 0.5 * sizes[1]


@pytest.mark.parametrize("name", MODELS)
def test_frozen_parameters_are_in_no_recorded_operation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = hf.named(name).build(0, torch.float32)
    everything = recorded(problem, monkeypatch)
    layer = "1.mlp" if name != "t5" else "block.1.layer.1"
    trained = train_only(problem.model, lambda n: layer in n or "encoder.layer.1.output" in n)
    found = recorded(problem, monkeypatch)
    assert trained and found and frozenset().union(*found) <= trained
    assert len(found) == sum(bool(roots & trained) for roots in everything) < len(everything)
