"""Whole audits: run, bound, probe, and put together.

Room: audit. May import torch through the room's own files, `reticent.{train,records}`.
"""

from typing import Final

import numpy as np
from rich.console import Console

from reticent.errors import AuditError, ConfigError

from ._inputs import Examples, Inputs, InputTrainer, mislabelled, one_run_inputs, out_of_distribution
from ._intervals import check_confidence
from ._probes import recording_probes
from ._problem import Directions, Subject, Trainer
from ._recording import (
    LowerBound,
    Recording,
    log_likelihood_ratios,
    one_run_bound,
    require_both,
    step_level_bound,
)
from ._released import neighbour_probe, noise_probes
from ._result import AuditResult, Claim, one_step_curve, whole_run_curve
from ._white_box import NUM_CANARIES, private_training, record

CONFIDENCE: Final = 0.999


def audit_steps(
    subject: Subject,
    *,
    claim: Claim,
    trainer: Trainer = private_training,
    num_canaries: int = NUM_CANARIES,
    num_steps: int | None = None,
    num_rows: int = 256,
    directions: Directions = "dirac",
    one_run: bool = False,
    probes: bool = True,
    confidence: float = CONFIDENCE,
    seed: int | None = None,
    console: Console | None = None,
) -> AuditResult:
    """Audit a trainer with gradient canaries, and probe it.

    Args:
        subject: model, losses, made-up rows and plan.
        claim: what the bound is held against.
        trainer: what trains; by default the library's own.
        num_canaries: M.
        num_steps: steps to run; see `record`.
        num_rows: ordinary rows beside the canaries.
        directions: "dirac" or "random"; see `Watched`.
        one_run: bound the whole run from one guess a canary, rather than each step.
        probes: also hold sampling, noise and sensitivity against the plan.
        confidence: of the bound; and one minus the chance that any probe raises a false alarm.
        seed: of coins and directions.
        console: where to show progress.

    Guarantee:
        On a trainer that does what its plan says, the bound is above the claim with probability at most
        1 - confidence, and some probe fails with probability at most as much again.

    Raises:
        AuditError[audit-saw-nothing]: no canary ever took part, or all did in every step, and no probe speaks
            against that.
        AuditError, ConfigError: as `record`.
    """
    chance = check_confidence(confidence) / 2.0
    seen = record(
        trainer,
        subject,
        num_canaries=num_canaries,
        num_steps=claim.num_steps if one_run and num_steps is None else num_steps,
        num_rows=num_rows,
        directions=directions,
        coins=one_run,
        seed=seed,
        console=console,
    )
    found = (
        recording_probes(seen, mechanism=claim.mechanism, noise=subject.plan.noise_multiplier, chance=chance)
        if probes
        else []
    )
    if all(probe.passed for probe in found):
        require_both(seen.included, f"took part in {seen.num_steps} steps")
    bound = _bound(seen, claim, one_run=one_run, confidence=confidence)
    evidence = log_likelihood_ratios(seen, mechanism=claim.mechanism)
    return AuditResult(
        target=subject.name,
        claim=claim,
        bound=bound,
        probes=(
            *found,
            *noise_probes(trainer, subject, chance=chance),
            neighbour_probe(trainer, subject),
        )
        if probes
        else (),
        curve=whole_run_curve(evidence, seen.member, claim)
        if one_run
        else one_step_curve(seen, mechanism=claim.mechanism),
        num_canaries=num_canaries,
        num_steps=seen.num_steps,
        canaries=f"gradients, {directions} directions",
    )


def _bound(seen: Recording, claim: Claim, *, one_run: bool, confidence: float) -> LowerBound:
    if not one_run:
        return step_level_bound(
            seen,
            mechanism=claim.mechanism,
            num_steps=claim.num_steps,
            delta=claim.delta,
            confidence=confidence,
        )
    if seen.num_steps != claim.num_steps:
        raise ConfigError(
            f"One run bounds the steps that were run: {seen.num_steps}, and the claim is of "
            f"{claim.num_steps}. Leave out the number of steps.",
            code="audit-size",
        )
    return one_run_bound(
        log_likelihood_ratios(seen, mechanism=claim.mechanism),
        seen.member,
        delta=claim.delta,
        confidence=confidence,
        mechanism=claim.mechanism,
        num_steps=claim.num_steps,
    )


def audit_inputs(
    train: InputTrainer,
    rows: Examples,
    *,
    target: str,
    claim: Claim,
    num_classes: int,
    kind: Inputs = "mislabelled",
    num_canaries: int = NUM_CANARIES,
    confidence: float = CONFIDENCE,
    seed: int | None = None,
) -> AuditResult:
    """Audit a trainer by strange inputs, from the losses of the model that it returns; nothing else is seen.

    Args:
        train: labelled rows -> a function from labelled rows to their losses.
        rows: public rows. Mislabelled canaries are taken from them, and the rest is trained on.
        target: as the result calls it.
        claim: what the bound is held against. Only its epsilon and delta are used.
        num_classes: labels are 0 to `num_classes` - 1.
        kind: of the canaries.
        num_canaries: M.
        confidence: of the bound.
        seed: of canaries and coins; by default from the operating system.

    Guarantee:
        Above the trainer's true epsilon with probability at most 1 - confidence, for any trainer.

    Raises:
        ConfigError[audit-size]: more mislabelled canaries than rows.
        AuditError[audit-subject]: random tokens, which are for models of texts.
        AuditError[audit-function, audit-scores]: the trainer returned no losses.
        AuditError[audit-saw-nothing]: all coins fell alike.
    """
    check_confidence(confidence)
    if kind == "random tokens":
        raise AuditError(
            "Random tokens are canaries for models of texts, and this trainer is given numbers. Take "
            "mislabelled rows, or rows out of distribution.",
            code="audit-subject",
        )
    rng = np.random.default_rng(seed)
    if kind == "mislabelled":
        if num_canaries > len(rows):
            raise ConfigError(
                f"{num_canaries} mislabelled canaries cannot be made of {len(rows)} rows.", code="audit-size"
            )
        order = rng.permutation(len(rows))
        canaries = mislabelled(
            rows.where(order[:num_canaries]), num_classes=num_classes, seed=int(rng.integers(2**31))
        )
        rows = rows.where(order[num_canaries:])
    else:
        canaries = out_of_distribution(
            rows, num=num_canaries, num_classes=num_classes, seed=int(rng.integers(2**31))
        )
    found = one_run_inputs(
        train,
        rows,
        canaries,
        delta=claim.delta,
        confidence=confidence,
        seed=int(rng.integers(2**31)),
    )
    return AuditResult(
        target=target,
        claim=claim,
        bound=found.bound,
        curve=whole_run_curve(found.evidence, found.member, claim),
        num_canaries=num_canaries,
        num_steps=0,
        canaries=f"inputs, {kind}",
    )
