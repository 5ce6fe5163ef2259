"""Random plans: calibrated, never above their target, and checked against what shares no code."""

import math
import random
import time

from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

from reticent.account import calibrate_noise_multiplier, cross_check, epsilon
from reticent.errors import AccountingError
from reticent.records import Budget, Mechanism, SamplingScheme

_EVERY = 5  # slow checks are made of every fifth plan


def one(seed):
    """Calibrate plan number `seed`, and check what it spends; a dict of what was found."""
    choose = random.Random(seed)
    prob = 10 ** choose.uniform(-3, -0.5)
    steps = round(10 ** choose.uniform(1, 3.5))
    target, delta = 10 ** choose.uniform(-0.7, 1), 10 ** choose.uniform(-7, -4.5)
    began = time.process_time()
    try:
        sigma = calibrate_noise_multiplier(
            budget=Budget(epsilon=target, delta=delta),
            scheme=SamplingScheme.POISSON,
            sampling_prob=prob,
            num_steps=steps,
        )
    except AccountingError as error:
        return {"seed": seed, "refused": error.code}
    seconds = time.process_time() - began
    step = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=prob, noise_multiplier=sigma)
    report = epsilon([(step, steps)], delta=delta)
    checks = cross_check(report, [(step, steps)], integral=seed % _EVERY == 0)
    second = second_opinion(prob, sigma, steps, delta) if seed % _EVERY == 1 else None
    return {
        "seed": seed,
        "second accountant": second,
        "epsilon": report.epsilon,
        "settings": [prob, steps, target, delta, sigma],
        "share": report.epsilon / target,
        "above": report.epsilon > target,
        "seconds": round(seconds, 3),
        "held": [c.name for c in checks if c.holds is True],
        "failed": [f"{c.name}: {c.detail}" for c in checks if c.holds is False],
    }


def second_opinion(prob, sigma, steps, delta, error=0.05):
    """Bounds on epsilon by prv-accountant (Gopi, Lee, Wutschitz 2021): no code of dp-accounting."""
    step = PoissonSubsampledGaussianMechanism(noise_multiplier=sigma, sampling_probability=prob)
    try:
        accountant = PRVAccountant(
            prvs=[step], max_self_compositions=[steps], eps_error=error, delta_error=1e-3 * delta
        )
        low, _, high = accountant.compute_epsilon(delta=delta, num_self_compositions=[steps])
    except RuntimeError:  # "Discrete mean differs from continuous mean significantly."
        return "refused by it"
    return low, high


def table(found):
    """Figures over all plans."""
    made = [plan for plan in found if "refused" not in plan]
    seconds = sorted(plan["seconds"] for plan in made)
    asked = [plan for plan in made if isinstance(plan["second accountant"], list | tuple)]
    held = [name for plan in made for name in plan["held"]]
    return {
        "plans calibrated": len(made),
        "plans refused (no noise reaches the target)": len(found) - len(made),
        "epsilon above its target": sum(plan["above"] for plan in made),
        "least share of the target used": min((p["share"] for p in made), default=math.nan),
        "CPU seconds, median and largest": [seconds[len(seconds) // 2], seconds[-1]] if seconds else [],
        "answered by a second accountant": len(asked),
        "refused by it": sum(plan["second accountant"] == "refused by it" for plan in made),
        "between its bounds, 0.1 apart": sum(
            plan["second accountant"][0] <= plan["epsilon"] <= plan["second accountant"][1] for plan in asked
        ),
        **{f"checked by {name}": held.count(name) for name in sorted(set(held))},
        "checks that did not hold": [problem for plan in made for problem in plan["failed"]],
    }
