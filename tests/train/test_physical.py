"""How many rows fit: found from small batches, within the budget, without touching anything."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reticent.clip import ClipEngine, CompiledEngine, SumsOnDemand, _compiled
from reticent.clipping import AdaptiveClipping, PerLayerClipping
from reticent.errors import ConfigError
from reticent.noise import CipherNoise, add_noise
from reticent.train import (
    PeakMemory,
    TrainSettings,
    available_memory,
    largest_physical_batch_size,
    resume,
    train,
)
from reticent.train._physical import _extrapolated
from tests.support.judge import snapshot
from tests.train.joint import cross_entropy, make_data, make_model, make_plan, make_private, weights_of

MIB = 1 << 20


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Dropout(0.1), nn.Linear(256, 64))


def _loss(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
    x, y = rows
    return (model(x) - y).square().mean((1, 2))


def _rows(n: int = 1) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 32, 64), torch.randn(n, 32, 64)


def _measured(model: nn.Module, size: int) -> int:
    """What a whole step takes: two chunks, and the release with its gradients."""
    engine = ClipEngine(model, max_norm=1.0)
    with PeakMemory() as peak:
        total = SumsOnDemand(dict(model.named_parameters()))
        for _ in range(2):
            added = engine.clipped_sum(lambda rows: _loss(model, rows), _rows(size), out=total)
        noised = add_noise(added, noise_multiplier=1.0, source=CipherNoise.fresh())
        gradients = [t / 7.0 for t in noised.values()]
    del gradients
    return peak.bytes


@pytest.mark.parametrize("budget", [4 * MIB, 16 * MIB, 64 * MIB])
def test_what_is_found_fits_and_is_not_timid(budget: int) -> None:
    model = _model()
    size = largest_physical_batch_size(model, _loss, _rows(), memory_budget=budget)
    assert _measured(model, size) <= budget
    assert _measured(model, 2 * size) > budget / 1.3


class _Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _wide() -> nn.Module:
    """6 MiB of parameters that see one position, and 5 MiB of activations a row."""
    torch.manual_seed(0)
    many = [nn.Linear(64, 256), *(nn.Tanh() for _ in range(150)), _Pooled()]
    return nn.Sequential(
        *many, *(nn.Linear(256, 256) for _ in range(24)), nn.Linear(256, 64), nn.Unflatten(1, (1, 64))
    )


def test_the_second_chunk_of_a_step_fits_beside_the_sums_of_the_first() -> None:
    model, budget = _wide(), 24 * MIB
    size = largest_physical_batch_size(model, _loss, _rows(), memory_budget=budget)
    assert size >= 2
    assert _measured(model, size) <= budget


def test_a_release_that_does_not_fit_is_refused() -> None:
    """Sums, noised sums and gradients, however few the rows are."""
    model = _wide()
    size = sum(p.numel() * 4 for p in model.parameters())
    with pytest.raises(ConfigError, match="A step of one row needs about"):
        largest_physical_batch_size(model, _loss, _rows(), memory_budget=int(2.9 * size))


@pytest.mark.parametrize("sharing", [0, 5 * MIB])
def test_an_operation_that_only_many_rows_make_the_largest_counts(sharing: int) -> None:
    """Alive for two rows: mostly what is there once. The peak of few rows is not that of many."""
    few, many = PeakMemory(), PeakMemory()
    few.trail, many.trail = [("a", 10 * MIB), ("b", 2 * MIB)], [("a", 10 * MIB), ("b", 4 * MIB)]
    few.bytes = many.bytes = 10 * MIB
    assert _extrapolated({2: few, 4: many}, sharing, 20 * MIB, 4096) == 20
    many.trail = [("a", 10 * MIB), ("c", 4 * MIB)]  # other operations: in proportion to the rows
    found = _extrapolated({2: few, 4: many}, sharing, 20 * MIB, 4096)
    assert found == 4 + int(10 * MIB / ((10 * MIB - sharing) / 4))


def test_no_batch_larger_than_four_rows_is_tried() -> None:
    sizes: list[int] = []

    def loss(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        sizes.append(len(rows[0]))
        return _loss(model, rows)

    assert largest_physical_batch_size(_model(), loss, _rows(), memory_budget=256 * MIB) > 100
    assert max(sizes) == 4


def test_values_of_rows_are_not_used_and_nothing_is_left_behind() -> None:
    seen: list[Tensor] = []

    def loss(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(rows[0])
        return _loss(model, rows)

    model = _model().train()
    one, three = _rows(), _rows(3)
    before, state = snapshot(model), torch.get_rng_state()
    first = largest_physical_batch_size(model, loss, one, memory_budget=32 * MIB)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(bool(x.any()) for x in seen)
    assert largest_physical_batch_size(model, loss, three, memory_budget=32 * MIB) == first


def test_a_budget_below_one_row_says_by_how_much() -> None:
    with pytest.raises(
        ConfigError, match=r"A step of one row needs about .* MiB .* short by .* MiB\. Raise memory_budget"
    ):
        largest_physical_batch_size(_model(), _loss, _rows(), memory_budget=1000)


@pytest.mark.parametrize("budget", [0, -5, True, "4GiB"])
def test_a_budget_that_is_no_number_of_bytes_is_refused(budget: Any) -> None:
    with pytest.raises(ConfigError, match="positive number of bytes"):
        largest_physical_batch_size(_model(), _loss, _rows(), memory_budget=budget)


def test_per_layer_clipping_fits_at_least_as_many_rows() -> None:
    model = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(64, 64), nn.Tanh())])
    flat = largest_physical_batch_size(model, _loss, _rows(), memory_budget=16 * MIB)
    layers = largest_physical_batch_size(
        model, _loss, _rows(), memory_budget=16 * MIB, clipping=PerLayerClipping(max_norm=1.0)
    )
    assert layers >= flat


def test_free_memory_is_a_number_of_bytes() -> None:
    assert MIB < available_memory(torch.device("cpu")) < 1 << 50


def _run(out: Any, loss: Any, **options: Any) -> tuple[Tensor, Any]:
    model = make_model()
    result = train(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5),
        plan=make_plan(num_steps=4),
        dataset=make_data(),
        loss_per_example=loss,
        out=out,
        noise_seed=3,
        **options,
    )
    return weights_of(model), result


def test_running_out_of_memory_repeats_the_step_in_smaller_chunks_and_counts_no_example_twice(
    tmp_path: Any,
) -> None:
    sizes: list[int] = []

    def small_device(model: nn.Module, rows: Any) -> Tensor:
        sizes.append(len(rows[0]))
        losses = cross_entropy(model, rows)
        if len(rows[0]) > 5 and len(sizes) % 2:  # sometimes only after a chunk has been added
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses

    want, _ = _run(tmp_path / "a", cross_entropy, physical_batch_size=4)
    got, result = _run(tmp_path / "b", small_device, physical_batch_size=8)
    assert max(sizes) > 5 and 4 in sizes
    torch.testing.assert_close(got, want)
    assert result.num_steps == 4


def test_running_out_of_memory_in_a_compiled_graph_repeats_the_step_in_a_smaller_graph(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def small_device(module: nn.Module, inputs: Any) -> Any:
        def run(*given: Tensor) -> Any:
            (units,) = (len(t) for t in given if t.dtype == torch.bool)  # the mask of real ones
            sizes.append(units)
            if units > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return module(*given)

        return run

    monkeypatch.setattr(_compiled, "_compile_graph", small_device)
    settings = TrainSettings(compile=True)
    want, _ = _run(tmp_path / "a", cross_entropy, physical_batch_size=4)
    got, result = _run(tmp_path / "b", cross_entropy, physical_batch_size=16, settings=settings)
    assert sizes[:2] == [16, 8] and set(sizes[2:]) == {4}
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert result.num_steps == 4


def test_a_compiled_engine_of_ones_own_is_made_smaller_and_never_larger(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compiled, "_compile_graph", lambda module, inputs: module)
    model = make_model()
    engine = CompiledEngine(model, max_norm=1.0, physical_batch_size=8)
    private = make_private(tmp_path, model=model, engine=engine, physical_batch_size=16)
    for size, at_once in ((16, 8), (8, 8), (4, 4), (16, 4)):
        private.physical_batch_size = size
        assert engine.physical_batch_size == at_once
    with pytest.raises(ConfigError, match="must be a positive integer"):
        private.physical_batch_size = 0
    with pytest.raises(ConfigError, match="must be a positive integer"):
        engine.physical_batch_size = 0


def test_a_graph_is_not_run_on_another_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compiled, "_compile_graph", lambda module, inputs: module)
    model, rows = make_model(), make_data()[:8]
    engine, alone = (
        CompiledEngine(model, max_norm=0.1, physical_batch_size=8),
        ClipEngine(model, max_norm=0.1),
    )

    def losses(rows: Any) -> Tensor:
        return cross_entropy(model, rows)

    want = alone.clipped_sum(losses, rows).total
    for size, times in ((8, 1), (4, 2), (8, 3)):  # compiled anew each time
        engine.physical_batch_size = size
        for _ in range(2):
            torch.testing.assert_close(
                dict(engine.clipped_sum(losses, rows).total), want, rtol=1e-3, atol=1e-5
            )
        assert engine.num_eager == times


def test_running_out_of_memory_on_one_row_ends_the_run(tmp_path: Any) -> None:
    def hopeless(model: nn.Module, rows: Any) -> Tensor:
        if len(rows[0]) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        _run(tmp_path / "a", hopeless, physical_batch_size=8)


def test_auto_is_resolved_before_the_run_and_written_down(tmp_path: Any) -> None:
    want, _ = _run(tmp_path / "a", cross_entropy, physical_batch_size=16)
    got, _ = _run(tmp_path / "b", cross_entropy, physical_batch_size="auto", memory_budget=MIB)
    torch.testing.assert_close(got, want)
    written = json.loads((tmp_path / "b" / "run.json").read_text())["settings"]["physical_batch_size"]
    assert isinstance(written, int) and 1 <= written <= 40


def test_auto_with_compile_is_refused_since_another_engine_would_be_measured(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="runs another engine"):
        _run(tmp_path / "a", cross_entropy, physical_batch_size="auto", settings=TrainSettings(compile=True))
    assert not (tmp_path / "a").exists()
    from reticent.recipes import request

    with pytest.raises(ConfigError, match="measures what runs without compile"):
        request("digits", ["physical_batch_size=auto", "compile=true"])


def test_a_budget_without_auto_or_below_one_row_spends_nothing(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="only read with physical_batch_size='auto'"):
        _run(tmp_path / "a", cross_entropy, physical_batch_size=4, memory_budget=MIB)
    with pytest.raises(ConfigError, match="A step of one row needs"):
        _run(tmp_path / "a", cross_entropy, physical_batch_size="auto", memory_budget=10)
    assert not (tmp_path / "a").exists()


def test_a_recipe_takes_auto_and_a_budget_in_words(tmp_path: Any) -> None:
    from reticent.recipes import request, with_physical_batch

    small = with_physical_batch(request("digits", ["physical_batch_size=auto", "memory_budget=1MiB"]))
    large = with_physical_batch(request("digits", ["physical_batch_size=auto", "memory_budget=1GiB"]))
    assert 1 <= small.config.num_rows_at_once < large.config.num_rows_at_once
    with pytest.raises(ConfigError, match="memory_budget is only read with physical_batch_size=auto"):
        request("digits", ["memory_budget=8MiB"])
    with pytest.raises(ConfigError, match="auto"):
        request("digits", ["physical_batch_size=most"])


@contextmanager
def _methods() -> Iterator[set[str]]:
    """By what methods engines clip inside the block."""
    methods: set[str] = set()
    plain = ClipEngine.clipped_sum

    def clipped_sum(engine: ClipEngine, *args: Any, **given: Any) -> Any:
        methods.update({engine.method} - {"loop"})  # of the self-check
        return plain(engine, *args, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipEngine, "clipped_sum", clipped_sum)
        yield methods


def _steps(out: Any, **options: Any) -> tuple[Tensor, set[str]]:
    """The weights after a run, and by what methods its engines clipped."""
    with _methods() as methods:
        weights, _ = _run(out, cross_entropy, **options)
    return weights, methods


@pytest.mark.parametrize("size", [4, "auto"])
def test_low_memory_takes_two_backwards_and_trains_the_same(tmp_path: Any, size: Any) -> None:
    options: dict[str, Any] = {"physical_batch_size": size}
    options |= {"memory_budget": MIB} if size == "auto" else {}
    want, one = _steps(tmp_path / "a", **options)
    got, two = _steps(tmp_path / "b", settings=TrainSettings(low_memory=True), **options)
    assert (one, two) == ({"book-keeping"}, {"ghost"})
    torch.testing.assert_close(got, want)


def test_low_memory_is_refused_where_it_gains_nothing(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="compile makes an engine that takes one backward"):
        TrainSettings(low_memory=True, compile=True)
    for options, text in (
        ({"compile": True}, "compile makes an engine"),
        ({"engine": ClipEngine(make_model(), max_norm=1.0)}, "set its own method='ghost'"),
        ({"plan": replace(make_plan(), clipping=PerLayerClipping(max_norm=1.0))}, "keeps nothing"),
    ):
        with pytest.raises(ConfigError, match=text) as refused:
            make_private(tmp_path, low_memory=True, **options)
        assert refused.value.code == "low-memory"
    adapts = replace(make_plan(), clipping=AdaptiveClipping(initial_max_norm=1.0, per_layer=True))
    model = make_model()
    with pytest.raises(ConfigError, match="per-layer clipping adds each layer's sum"):
        train(
            model,
            torch.optim.SGD(model.parameters(), lr=0.5),
            plan=adapts,
            dataset=make_data(),
            loss_per_example=cross_entropy,
            out=tmp_path / "b",
            settings=TrainSettings(low_memory=True),
        )
    assert not (tmp_path / "b").exists()


def test_a_recipe_takes_low_memory_to_its_run(tmp_path: Any) -> None:
    from reticent.recipes import request, run

    out = tmp_path / "run"
    with _methods() as methods:
        run(request("digits", ["num_steps=2", "low_memory=true"]), out=out)
    assert methods == {"ghost"}
    assert json.loads((out / "run.json").read_text())["settings"]["low_memory"] is True
    for settings, text in (
        (["compile=true"], "compile = true one"),
        (["clipping=per-layer"], "keeps nothing"),
        (["parallel=tp"], "low_memory needs the whole model"),
        (["epsilon=inf"], "low_memory would be ignored"),
    ):
        with pytest.raises(ConfigError, match=text):
            request("digits", ["low_memory=true", *settings])


def test_a_run_of_an_older_version_without_low_memory_goes_on(tmp_path: Any) -> None:
    out = tmp_path / "a"
    want, _ = _run(out, cross_entropy, physical_batch_size=4)
    about = json.loads((out / "run.json").read_text())
    del about["settings"]["low_memory"]
    (out / "run.json").write_text(json.dumps(about))
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    resume(model, optimizer, dataset=make_data(), loss_per_example=cross_entropy, out=out)
    torch.testing.assert_close(weights_of(model), want)
