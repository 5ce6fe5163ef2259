"""Opacus where the number of rows is a secret: its sampling rate and its divisor are computed from it.

Sources: opacus 1.6, `privacy_engine.py` (`make_private`: rate 1 / len(loader), divisor int(N * rate)).
"""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reticent as rt
from reticent.audit import many_run_bound, train_shadows

CONFIDENCE = 0.999
NOISE, FEW, WIDTH, SMALL_DELTA = 6.0, 1000, 100, 1e-6


def made_private(
    model: nn.Module, optimizer: Any, loader: Any, noise: float, max_norm: float, *, poisson: bool = True
) -> Any:
    """What `PrivacyEngine.make_private` makes of a model, its optimizer and a loader."""
    from opacus import PrivacyEngine  # pyright: ignore[reportMissingImports]

    return PrivacyEngine(accountant="prv").make_private(
        module=model.train(),
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=noise,
        max_grad_norm=max_norm,
        poisson_sampling=poisson,
    )


def reported(noise: float, sampling_prob: float, num_steps: int, delta: float) -> float:
    """The epsilon that Opacus's default accountant gives these steps."""
    from opacus.accountants import PRVAccountant  # pyright: ignore[reportMissingImports]

    accountant = PRVAccountant()
    accountant.history = [(noise, sampling_prob, num_steps)]
    return float(accountant.get_epsilon(delta))


def _problem() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.zeros_(model.weight)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def one_step_of_opacus(dataset: tuple[Tensor, ...]) -> nn.Module:
    """One step on rows of zeros, whose gradients are zero: the update is noise over the divisor."""
    model, optimizer = _problem()
    loader = DataLoader(TensorDataset(*dataset), batch_size=FEW // 10, shuffle=True)
    wrapped, stepper, batches = made_private(model, optimizer, loader, NOISE, 1.0)
    (x,) = next(iter(batches))
    wrapped(x).mean().backward()
    stepper.step()
    return model


def one_step_of_ours(dataset: tuple[Tensor, ...]) -> nn.Module:
    """The same through `PrivateStep`: rate and divisor are the plan's, whatever the number of rows."""
    model, optimizer = _problem()
    plan = rt.Plan(
        sampler=rt.PoissonSampler(sampling_prob=0.1, expected_batch_size=FEW / 10),
        num_steps=1,
        noise_multiplier=NOISE,
        clipping=rt.FlatClipping(max_norm=1.0),
        delta=SMALL_DELTA,
    )
    with tempfile.TemporaryDirectory() as folder:
        private = rt.PrivateStep(model, optimizer, plan=plan, ledger=folder)
        for batch in plan.batches(dataset):
            with private.step(batch) as step:
                for chunk in step.chunks():
                    step.backward(lambda model, rows: model(rows[0]).mean(1), chunk)
        private.close()
    return model


def spread(model: nn.Module) -> float:
    """Standard deviation of the model's weights, all of which began at zero."""
    return float(torch.cat([p.detach().flatten() for p in model.parameters()]).std())


def count_of_rows(train: Callable[[tuple[Tensor, ...]], nn.Module], num_runs: int = 1000) -> dict[str, Any]:
    """Tell 1000 rows from 1001 by the spread of one update; half of the runs choose the threshold."""
    member = np.ones((num_runs, FEW + 1), dtype=bool)
    member[::2, -1] = False
    spreads = train_shadows(
        train,
        lambda model: np.full(FEW + 1, spread(model)),
        (torch.zeros(FEW + 1, WIDTH),),
        member,
    )
    bound = many_run_bound(
        spreads.scores[:, -1], spreads.member[:, -1], delta=SMALL_DELTA, confidence=CONFIDENCE
    )
    return {
        "epsilon_lower_bound": bound.epsilon,
        "delta": bound.delta,
        "confidence": bound.confidence,
        "method": bound.method,
        "spread_without": float(spreads.scores[::2, -1].mean()),
        "spread_with": float(spreads.scores[1::2, -1].mean()),
    }


def claims() -> dict[str, float]:
    """The epsilon that Opacus reports of the step, with either number of rows."""
    return {
        f"epsilon_reported_1_of_{steps}": reported(NOISE, 1 / steps, 1, SMALL_DELTA) for steps in (10, 11)
    }
