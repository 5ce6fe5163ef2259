"""What the compiled engine refuses by its own words, and what makes another graph of a model."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import library as custom

from reticent.clip import ClipEngine, CompiledEngine
from reticent.clip._graph import _draws
from reticent.errors import ConfigError, UnsupportedModel

ATEN = torch.ops.aten


pytestmark = pytest.mark.usefixtures("same_data")


def refused(losses: Callable[[Tensor], Tensor], model: nn.Module) -> UnsupportedModel:
    """How the compiled engine refuses what `ClipEngine` takes."""
    x = torch.randn(4, 3)
    ClipEngine(model, max_norm=1.0).clipped_sum(losses, x.clone())
    with pytest.raises(UnsupportedModel) as caught:
        CompiledEngine(model, max_norm=1.0, physical_batch_size=4).clipped_sum(losses, x)
    assert caught.value.code == "compile-unstable"
    return caught.value


@pytest.mark.parametrize("write", [lambda x: x.mul_(0.5), lambda x: x[:, 0].zero_()], ids=["rows", "a view"])
def test_losses_that_write_into_their_rows_are_refused(
    write: Callable[[Tensor], Tensor], as_traced: None
) -> None:
    """The rows are there once, and the graph may run more than once."""
    model = nn.Linear(3, 2)

    def losses(x: Tensor) -> Tensor:
        write(x)
        return model(x).square().sum(1)

    assert "it writes into the rows it is given" in str(refused(losses, model))


@pytest.mark.parametrize("ask", [lambda x: x.numpy(), lambda x: x.data_ptr()], ids=["numpy", "data_ptr"])
def test_what_torch_cannot_run_without_values_is_refused(
    ask: Callable[[Tensor], Any], as_traced: None
) -> None:
    model = nn.Linear(3, 2)

    def losses(x: Tensor) -> Tensor:
        ask(x.detach())
        return model(x).sum(1)

    error = refused(losses, model)
    assert "torch cannot run it without values (RuntimeError)" in str(error)
    assert isinstance(error.__cause__, RuntimeError)


@pytest.fixture
def twice() -> Iterator[Callable[[Tensor], Tensor]]:
    """An operation of which torch knows the code for CPUs only."""
    made = custom.Library("reticent_tests", "FRAGMENT")
    made.define("twice(Tensor x) -> Tensor")
    made.impl("twice", lambda x: 2 * x, "CPU")
    yield torch.ops.reticent_tests.twice
    made._destroy()


def test_an_operation_that_torch_does_not_know_without_values_is_named(
    twice: Callable[[Tensor], Tensor], as_traced: None
) -> None:
    model = nn.Linear(3, 2)
    message = str(refused(lambda x: model(twice(x)).sum(1), model))
    assert "reticent_tests.twice" in message and "register_fake" in message


def test_running_out_of_memory_while_tracing_stays_what_it_is(
    monkeypatch: pytest.MonkeyPatch, as_traced: None
) -> None:
    """`train` takes it as a reason to run fewer rows at once."""

    def small_device(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = nn.Linear(3, 2)
    engine = CompiledEngine(model, max_norm=1.0, physical_batch_size=4)
    monkeypatch.setattr("reticent.clip._trace.check_losses", small_device)
    with pytest.raises(torch.OutOfMemoryError):
        engine.clipped_sum(lambda x: model(x).sum(1), torch.randn(4, 3))


def test_a_compiler_that_fails_is_told_by_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor
    from torch._inductor.exc import CppCompileError, InductorError

    def failing(*args: Any, **kwargs: Any) -> None:
        raise InductorError(CppCompileError(["c++"], "no headers"), None)

    monkeypatch.setattr(torch._inductor, "compile", failing)
    model = nn.Linear(3, 2)
    engine = CompiledEngine(model, max_norm=1.0, physical_batch_size=4)
    for _ in range(3):
        with pytest.raises(ConfigError, match=r"compiler failed \(CppCompileError\)") as caught:
            engine.clipped_sum(lambda x: model(x).sum(1), torch.randn(4, 3))
        assert caught.value.code == "no-compiler"


# -- whether a graph draws ----------------------------------------------------------------------------


def recurrent(dropout: float, train: bool) -> tuple[Any, ...]:
    """Arguments of cuDNN's layers up to `dropout_state`."""
    return (None, [], 4, None, None, None, 2, 8, 0, 2, False, dropout, train, False, [], None)


@pytest.mark.parametrize(
    ("target", "args", "draws"),
    [
        (ATEN.bernoulli_.float, (None, 0.5), True),
        (ATEN.native_dropout.default, (None, 0.5, True), True),
        (ATEN.native_dropout.default, (None, 0.5, None), True),
        (ATEN.native_dropout.default, (None, 0.5, False), False),
        (ATEN._cudnn_rnn.default, recurrent(0.5, True), True),
        (ATEN._cudnn_rnn.default, recurrent(0.5, False), False),
        (ATEN._cudnn_rnn.default, recurrent(0.0, True), False),
        (ATEN.rrelu_with_noise.default, (None, None, 0.1, 0.3, True), True),
        (ATEN.rrelu_with_noise.default, (None, None, 0.1, 0.3), False),
        (ATEN.scaled_dot_product_attention.default, (None, None, None, None, 0.1), True),
        (ATEN.scaled_dot_product_attention.default, (None, None, None), False),
        (ATEN._scaled_dot_product_efficient_attention_backward.default, (None,) * 9 + (0.1,), False),
        (ATEN.mul.Tensor, (None, None), False),
    ],
    ids=str,
)
def test_what_is_tagged_as_random_draws_only_where_it_can(
    target: Any, args: tuple[Any, ...], draws: bool
) -> None:
    assert _draws(torch.fx.Graph().call_function(target, args)) is draws


# -- another graph ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"), [("padding", (2, 1)), ("stride", (2, 2)), ("dilation", (1, 2))]
)
def test_a_tuple_that_a_module_keeps_is_seen_to_change(
    setting: str, value: tuple[int, int], as_traced: None
) -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(4, 2, 6, 6)
    losses = lambda x: model(x).square().flatten(1).sum(1)  # noqa: E731
    engine = CompiledEngine(model, max_norm=1.0, physical_batch_size=4)
    engine.clipped_sum(losses, x)
    setattr(model, setting, value)
    want = ClipEngine(model, max_norm=1.0).clipped_sum(losses, x)
    for _ in range(2):
        got = engine.clipped_sum(losses, x)
        torch.testing.assert_close(got.norms, want.norms, rtol=1e-4, atol=0.0)
    assert engine.num_eager == 2, "one for each graph"
