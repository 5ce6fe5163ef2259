"""What the engine keeps between calls, its slow twin, half precision, and its settings."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reticent as rt
from tests.support import oracle


def _problem(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(11, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    ).to(dtype)
    return model, (torch.randint(0, 11, (8, 4)), torch.randint(0, 3, (8, 4)))


def _losses(model: nn.Module):
    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]).mT, batch[1], reduction="none").mean(1)

    return losses


def test_the_loop_is_the_same_sum() -> None:
    model, batch = _problem()
    fast = rt.clipped_sum(model, _losses(model), batch, max_norm=0.1)
    slow = rt.clipped_sum(model, _losses(model), batch, max_norm=0.1, method="loop")
    assert oracle.distance(dict(fast.total), dict(slow.total)) < 1e-10
    torch.testing.assert_close(fast.norms, slow.norms, rtol=1e-10, atol=0.0)


def test_chunks_of_any_size_give_the_same_sum() -> None:
    model, batch = _problem()
    whole = rt.clipped_sum(model, _losses(model), batch, max_norm=0.1)
    for size in (1, 3, 8):
        engine = rt.ClipEngine(model, max_norm=0.1)
        out = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        for start in range(0, 8, size):
            engine.clipped_sum(_losses(model), tuple(t[start : start + size] for t in batch), out=out)
        assert oracle.distance(out, dict(whole.total)) < 1e-12


def test_only_a_new_operation_costs_backwards_that_prove_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from reticent.clip import _engine

    backwards: list[bool] = []
    real = _engine.run_backward

    def counted(loss: Tensor, grad: Tensor, *, retain_graph: bool) -> None:
        backwards.append(retain_graph)
        real(loss, grad, retain_graph=retain_graph)

    monkeypatch.setattr(_engine, "run_backward", counted)
    model, batch = _problem()
    engine = rt.ClipEngine(model, max_norm=0.1)
    for _ in range(3):
        engine.clipped_sum(_losses(model), batch)
    assert backwards == [True, True, False, False, False]


def test_autocast_is_close_to_float32_and_counts_no_norm_in_half_precision() -> None:
    model, batch = _problem(torch.float32)
    exact = rt.clipped_sum(model, _losses(model), batch, max_norm=0.1)

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return _losses(model)(batch)

    half = rt.clipped_sum(model, losses, batch, max_norm=0.1)
    assert half.norms.dtype == torch.float64
    assert {t.dtype for t in half.total.values()} == {torch.float32}
    torch.testing.assert_close(half.norms, exact.norms, rtol=0.05, atol=0.0)
    assert oracle.distance(dict(half.total), dict(exact.total)) < 0.05 * 0.1 * 8


@pytest.mark.parametrize("method", ["book-keeping", "ghost"])
def test_autocast_around_the_engine_is_no_other_than_around_the_model(method: str) -> None:
    """Norms and sums are in full precision in both: only rounding of float32 is left between them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8))
    x = torch.randn(4, 40, 32)

    def losses(b: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(b).float().square().sum((1, 2))

    engine = rt.ClipEngine(model, max_norm=1e-2, method=method)
    for _ in range(2):  # the second call has its plan
        inside = engine.clipped_sum(losses, x)
        with torch.autocast("cpu", torch.bfloat16):
            around = engine.clipped_sum(losses, x)
    torch.testing.assert_close(around.norms, inside.norms, rtol=1e-6, atol=0.0)
    assert oracle.distance(dict(around.total), dict(inside.total)) < 1e-6 * 4e-2


def test_a_forward_that_raises_leaves_no_hook_and_no_mode() -> None:
    model, batch = _problem()
    engine = rt.ClipEngine(model, max_norm=0.1)

    def broken(batch: tuple[Tensor, Tensor]) -> Tensor:
        model(batch[0])
        raise KeyError("mine")

    before = len(torch.nn.modules.module._global_forward_hooks)
    with pytest.raises(KeyError, match="mine"):
        engine.clipped_sum(broken, batch)
    assert len(torch.nn.modules.module._global_forward_hooks) == before
    assert torch._C._len_torch_function_stack() == 0
    assert bool((engine.clipped_sum(_losses(model), batch).norms > 0).all())


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_clipping_norm_that_is_no_finite_positive_number_is_refused(max_norm: object) -> None:
    model, _ = _problem()
    with pytest.raises(rt.errors.ConfigError, match="max_norm must be a finite number > 0"):
        rt.ClipEngine(model, max_norm=max_norm)  # type: ignore[arg-type]


def test_an_unknown_method_lists_the_known_ones() -> None:
    model, _ = _problem()
    with pytest.raises(rt.errors.ConfigError, match="'book-keeping', 'ghost', 'loop'"):
        rt.ClipEngine(model, max_norm=1.0, method="magic")  # type: ignore[arg-type]


def test_a_batch_whose_tensors_disagree_is_refused() -> None:
    model, (x, y) = _problem()
    with pytest.raises(rt.errors.ConfigError, match="share their first axis"):
        rt.clipped_sum(model, _losses(model), (x, y[:3]), max_norm=1.0)


def test_a_wrong_rule_of_a_user_is_found_by_the_self_check() -> None:
    model, batch = _problem()
    from reticent.rules import BUILTIN
    from reticent.rules._linear import LinearMeeting

    class Half(LinearMeeting):
        def forms(self, saved, g, layout):
            return LinearMeeting.forms(self, saved, 0.5 * g, layout)

    def rule(recorder, args, kwargs):
        x, weight, bias = args
        roles = {"weight": weight, "bias": bias}
        return recorder.record(Half(weight.detach(), bias.detach(), False, frozenset(roles)), roles, (x,))

    with pytest.raises(rt.errors.UnsupportedModel, match="not those of plain autograd"):
        rt.clipped_sum(model, _losses(model), batch, max_norm=0.1, rules={**BUILTIN, F.linear: rule})


def test_a_gradient_hook_on_a_parameter_is_refused_by_name() -> None:
    model, batch = _problem()
    model[2].weight.register_hook(lambda g: 2 * g)
    with pytest.raises(rt.errors.UnsupportedModel, match=r"'2\.weight' has a gradient hook"):
        rt.clipped_sum(model, _losses(model), batch, max_norm=0.1)


def test_a_hook_that_would_train_on_the_checked_examples_gradients_is_refused_before_they_exist() -> None:
    model, batch = _problem()
    before = model[2].weight.detach().clone()
    model[2].weight.register_post_accumulate_grad_hook(lambda p: p.data.sub_(p.grad))
    with pytest.raises(rt.errors.UnsupportedModel, match=r"'2\.weight' has a gradient hook"):
        rt.clipped_sum(model, _losses(model), batch, max_norm=0.1)
    assert torch.equal(model[2].weight, before)


def test_two_of_many_units_that_mix_with_each_other_are_found() -> None:
    """Up to 64 units every probe weight is another one, so that no pair can hide behind equal weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(64, 3)
    swap = torch.eye(64)
    swap[5, 41], swap[5, 5] = 0.5, 0.5

    def losses() -> Tensor:
        return model[2](swap @ model[:2](x)).square().sum(1)

    for _ in range(10):
        with pytest.raises(rt.errors.CoupledExamples):
            rt.clipped_sum(model, losses, max_norm=0.1)


@pytest.mark.parametrize("draw", [torch.rand, torch.randn], ids=["uniform", "normal"])
def test_mixing_inputs_by_a_random_share_is_found_though_draws_are_silenced(draw) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def losses(x: Tensor) -> Tensor:
        share = draw(1)
        return model(share * x + (1 - share) * x.flip(0)).square().sum(1)

    with pytest.raises(rt.errors.CoupledExamples, match="depends on the other examples"):
        rt.clipped_sum(model, losses, torch.randn(8, 3), max_norm=0.1)


@pytest.mark.parametrize("kind", ["prehook", "hook"])
def test_a_hook_on_a_gradients_node_that_updates_the_weight_is_found(kind: str) -> None:
    """An optimizer in the backward, hung on the node itself, past every list of hooks and every version."""
    model = nn.Linear(3, 2)
    node = model.weight.view_as(model.weight).grad_fn.next_functions[0][0]  # type: ignore[union-attr]

    def update(*_: object) -> None:
        model.weight.data.sub_(0.1)

    node.register_prehook(update) if kind == "prehook" else node.register_hook(update)  # type: ignore
    x = torch.ones(4, 3)
    with pytest.raises(rt.UnsupportedModel, match="changed a parameter in the backward") as caught:
        rt.clipped_sum(model, lambda batch: model(batch).square().sum(1), x, max_norm=1.0)
    assert caught.value.code == "parameter-hook"
