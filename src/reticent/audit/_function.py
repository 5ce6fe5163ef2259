"""Trainers given by name, `MODULE:function`: found, checked for their shape, and audited.

Room: audit. May import torch, `reticent.{data,plan,sample,records,errors}`; imports what the name says.
"""

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from reticent.clipping import FlatClipping
from reticent.data import load
from reticent.errors import AuditError
from reticent.plan import Plan
from reticent.records import Budget
from reticent.sample import PoissonSampler

from ._audit import CONFIDENCE, audit_inputs, audit_steps
from ._inputs import Examples, Inputs, Losses
from ._intervals import check_confidence
from ._problem import Directions
from ._result import AuditResult, Claim
from ._white_box import NUM_CANARIES, NUM_STEPS, small_subject

How = Literal["step", "one-run", "inputs"]
_NUM_CLASSES: Final = 10


def audit_function(
    name: str,
    *,
    epsilon: float = 8.0,
    delta: float = 1e-5,
    claimed_steps: int = NUM_STEPS,
    sampling_prob: float = 0.1,
    how: How = "step",
    kind: Inputs | None = None,
    num_canaries: int = NUM_CANARIES,
    directions: Directions = "dirac",
    probes: bool = True,
    confidence: float = CONFIDENCE,
    seed: int | None = None,
    console: Console | None = None,
) -> AuditResult:
    """Audit a trainer that is a function in a module.

    With `how` "step" or "one-run" the function is called with a `Problem`, and trains its model by its plan;
    with "inputs" it is called with `Examples` (digits of 64 numbers each, and labels 0 to 9), trains on them,
    and returns a model of logits, or a function from `Examples` to their losses.

    Args:
        name: `module:function`; the module may be a file in the working directory.
        epsilon: what the trainer claims; with a `Problem` its plan is calibrated to it.
        delta: of the claim.
        claimed_steps: steps of the plan.
        sampling_prob: of the plan.
        how: what canaries are.
        kind: with "inputs", what is strange about them: "mislabelled" (None) or "out of distribution".
        num_canaries: M.
        directions: of gradient canaries.
        probes: also probe it; not with "inputs", where nothing of the training is seen.
        confidence: of the bound.
        seed: of canaries and coins.
        console: where to show progress.

    Raises:
        AuditError[audit-target]: there is no such module or function.
        AuditError[audit-function]: it is no function of one argument, or returned something else.
        AuditError, ConfigError: as `audit_steps` and `audit_inputs`.
    """
    check_confidence(confidence)
    function = find_function(name)
    sampler = PoissonSampler(sampling_prob=sampling_prob, expected_batch_size=256.0)
    budget = Budget(epsilon=epsilon, delta=delta)
    plan = Plan.calibrate(
        budget=budget, sampler=sampler, num_steps=claimed_steps, clipping=FlatClipping(max_norm=1.0)
    )
    claim = Claim(epsilon=epsilon, delta=delta, mechanism=plan.mechanism, num_steps=claimed_steps)
    if how == "inputs":
        return audit_inputs(
            lambda rows: _losses(function(rows), name),
            digits(),
            target=name,
            claim=claim,
            num_classes=_NUM_CLASSES,
            kind=kind or "mislabelled",
            num_canaries=num_canaries,
            confidence=confidence,
            seed=seed,
        )
    return audit_steps(
        small_subject(plan, name=name),
        claim=claim,
        trainer=function,
        num_canaries=num_canaries,
        directions=directions,
        one_run=how == "one-run",
        probes=probes,
        confidence=confidence,
        seed=seed,
        console=console,
    )


def digits() -> Examples:
    """The embedded digits, public: inputs (N, 64) from -1 to 1, float32."""
    found = load("digits")
    x = np.concatenate([found.train.x, found.test.x]).reshape(-1, 64).astype(np.float32) / 8.0 - 1.0
    return Examples(x=x, y=np.concatenate([found.train.y, found.test.y]).astype(np.int64))


def find_function(name: str) -> Callable[[Any], Any]:
    """The function that `module:function` names.

    Raises:
        AuditError[audit-target]: no such module or function; the module's own errors are not hidden.
        AuditError[audit-function]: it cannot be called with one argument.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise _no_target(name, "Write MODULE:function, e.g. my_trainer:train")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name is None or not (module_name == e.name or module_name.startswith(f"{e.name}.")):
            raise  # something that the module itself imports
        raise _no_target(name, f"There is no module '{module_name}', not in '{here}' either") from e
    found = getattr(module, attribute, None)
    if found is None:
        raise _no_target(name, f"The module '{module_name}' has no '{attribute}'")
    if not callable(found):
        raise AuditError(f"'{name}' is a {type(found).__name__}, not a function.", code="audit-function")
    try:
        inspect.signature(found).bind(None)
    except TypeError as e:
        raise AuditError(
            f"'{name}' cannot be called with one argument ({e}). A trainer under audit takes the problem it "
            "is to train, and nothing else that it needs.",
            code="audit-function",
        ) from e
    except ValueError:  # a builtin without a signature
        pass
    return found


def _no_target(name: str, why: str) -> AuditError:
    return AuditError(f"Nothing to audit at '{name}'. {why}.", code="audit-target")


def _losses(returned: object, name: str) -> Losses:
    """What a trainer returned, as a function from rows to losses."""
    if isinstance(returned, nn.Module):
        return _Logits(returned.eval()).losses
    if callable(returned):
        return lambda rows: np.asarray(returned(rows), dtype=np.float64)
    raise AuditError(
        f"'{name}' returned a {type(returned).__name__}. With input canaries a trainer returns a model of "
        "logits, or a function from labelled rows to their losses.",
        code="audit-function",
    )


class _Logits:
    """Cross-entropy of a model of logits."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def losses(self, rows: Examples) -> np.ndarray:
        with torch.no_grad():
            logits = self._model(torch.from_numpy(rows.x))
            return F.cross_entropy(logits, torch.from_numpy(rows.y), reduction="none").double().numpy()
