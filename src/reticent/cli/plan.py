"""`reticent plan`: what a private run would do and cost, before any data is read.

Room: cli.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reticent.cli._explorer import open_explorer, refuse_idle
from reticent.cli._plan_rows import plan_rows
from reticent.cli._show import print_json, print_table, print_warnings
from reticent.clipping import FlatClipping, sensitivity
from reticent.errors import ConfigError
from reticent.records import Budget, SamplingScheme, check_delta

if TYPE_CHECKING:
    from reticent.plan import Plan, Sampler, StagedSampler
    from reticent.recipes import Request


@click.command("plan", short_help="Show what a private run would do and cost, without reading data.")
@click.argument("recipe", required=False, metavar="[RECIPE|CONFIG.toml]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a RECIPE's setting.")
@click.option("--epsilon", type=float, help="Epsilon that may be spent.")
@click.option("--delta", type=float, help="Delta of the statement, well below 1/N.")
@click.option("--noise-multiplier", type=float, help="Noise standard deviation over the clipping bound.")
@click.option("--num-steps", type=int, help="Number of steps.")
@click.option("--expected-batch-size", type=float, help="Expected number of examples of a step.")
@click.option(
    "--batch-schedule",
    metavar="SHARE:SIZE,...",
    help="In place of --expected-batch-size: sizes that begin after shares of the steps, e.g. "
    "0.0:1024,0.5:2048.",
)
@click.option("--num-examples", type=int, help="Number of examples, declared a public constant.")
@click.option(
    "--sampling-prob", type=float, help="Probability that an example takes part in a step; N stays secret."
)
@click.option(
    "--sampler",
    type=click.Choice([s.value for s in SamplingScheme]),
    help="How each step draws examples.  [default: poisson]",
)
@click.option("--max-batch-size", type=int, help="Of truncated-poisson: the largest batch, cut at random.")
@click.option("--max-norm", type=float, help="Clipping norm C.  [default: 1, or the recipe's]")
@click.option(
    "--hardware",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Of a RECIPE: memory, time and device hours on this device; a file made by reticent hardware.",
)
@click.option("--ranks", type=click.IntRange(1), help="With --hardware: processes, a device each.")
@click.option(
    "--parallel",
    type=click.Choice(["ddp", "fsdp2", "tp"]),
    help="With --ranks: the model on every rank, sharded over them, or each layer in slices.  [default: the "
    "recipe's setting, else ddp]",
)
@click.option(
    "--num-replicas",
    type=click.IntRange(1),
    help="With --parallel fsdp2: copies of the model, each sharded over its part of the ranks.  [default: 1]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--open",
    "explorer",
    is_flag=True,
    help="Explore plans in the browser, on this machine alone, until Ctrl-C.",
)
@click.option("--no-browser", is_flag=True, help="With --open: print the address and open nothing.")
def command(
    recipe: str | None,
    settings: tuple[str, ...],
    epsilon: float | None,
    delta: float | None,
    noise_multiplier: float | None,
    num_steps: int | None,
    expected_batch_size: float | None,
    batch_schedule: str | None,
    num_examples: int | None,
    sampling_prob: float | None,
    sampler: str | None,
    max_batch_size: int | None,
    max_norm: float | None,
    hardware: Path | None,
    ranks: int | None,
    parallel: str | None,
    num_replicas: int | None,
    as_json: bool,
    explorer: bool,
    no_browser: bool,
) -> None:
    """Show what a private run would do and cost, without reading data.

    Give --delta, how examples are drawn (--num-examples with --expected-batch-size, or
    --sampling-prob), and all but one of --epsilon, --noise-multiplier, --num-steps and
    --expected-batch-size: the one left out is solved for, never spending more than --epsilon.
    With --batch-schedule the size changes during the run; give --num-steps then.

    With a RECIPE (fashion-mnist, digits, or a CONFIG.toml) its settings are the defaults, the noise is
    solved for, and the memory of a step is estimated from one run of the model on random rows.

    With --hardware, a RECIPE's memory on each rank, time and device hours come from its shapes and the
    device's rates: neither weights nor data are read, so any size of model can be asked about.

    With --open, sliders in the browser: noise, signal and cost for other budgets, batches and steps.
    """
    if explorer:
        refuse_idle(
            {
                "RECIPE": recipe is not None,
                "--set": bool(settings),
                "--noise-multiplier": noise_multiplier is not None,
                "--sampling-prob": sampling_prob is not None,
                "--sampler": sampler is not None,
                "--batch-schedule": batch_schedule is not None,
                "--max-norm": max_norm is not None,
                "--hardware": hardware is not None,
                "--json": as_json,
            }
        )
        start = {"epsilon": epsilon, "delta": delta, "num_examples": num_examples, "num_steps": num_steps}
        open_explorer({**start, "expected_batch_size": expected_batch_size}, browser=not no_browser)
        return
    if hardware is None and not (ranks is parallel is num_replicas is None):
        raise click.UsageError("--ranks, --parallel and --num-replicas are read with --hardware.")
    if hardware is not None and recipe is None:
        raise click.UsageError("--hardware estimates a RECIPE, whose model has shapes: name one.")
    if no_browser:
        raise click.UsageError("--no-browser is read with --open only.")
    from reticent.plan import Plan, problem, raise_together  # the accountant is slow to import

    if recipe is not None:
        fixed = {
            "--noise-multiplier": noise_multiplier,
            "--num-examples": num_examples,
            "--sampling-prob": sampling_prob,
            "--sampler": sampler,
            "--max-batch-size": max_batch_size,
        }
        changed = {
            "epsilon": epsilon,
            "delta": delta,
            "num_steps": num_steps,
            "expected_batch_size": expected_batch_size,
            "batch_schedule": batch_schedule,
            "max_norm": max_norm,
        }
        _refuse_fixed_by_recipe(recipe, fixed)
        given = [f"{name}={value!r}" for name, value in changed.items() if value is not None]
        scale = (
            None
            if hardware is None
            else partial(_at_scale, hardware, ranks or 1, parallel, num_replicas or 1)
        )
        _show(_record_of_recipe(recipe, (*settings, *given), scale), as_json=as_json)
        return
    if settings:
        raise ConfigError("--set changes a RECIPE's setting: name the recipe first.", code="plan-recipe")
    if delta is None:
        raise click.UsageError("Missing option '--delta': no epsilon means anything without it.")
    drawn: Callable[[], Sampler | StagedSampler | None] = partial(
        _sampler,
        SamplingScheme.POISSON if sampler is None else SamplingScheme(sampler),
        num_examples,
        expected_batch_size,
        sampling_prob,
        max_batch_size,
    )
    if batch_schedule is not None:
        idle = {
            "--expected-batch-size": expected_batch_size,
            "--sampling-prob": sampling_prob,
            "--sampler": sampler,
            "--max-batch-size": max_batch_size,
        }
        drawn = partial(_staged, batch_schedule, num_examples, num_steps, idle)
    max_norm = 1.0 if max_norm is None else max_norm
    raise_together(
        problem(lambda: Budget(epsilon=1.0 if epsilon is None else epsilon, delta=0.5)),
        problem(lambda: check_delta(delta)),
        problem(lambda: FlatClipping(max_norm=max_norm)),
        problem(drawn),
    )
    chosen = drawn()
    _check_one_left_out(
        {
            "--epsilon": epsilon is None,
            "--noise-multiplier": noise_multiplier is None,
            "--num-steps": num_steps is None,
            "--expected-batch-size": chosen is None,
        }
    )
    plan = Plan.calibrate(
        clipping=FlatClipping(max_norm=max_norm),
        sampler=chosen,
        num_examples=num_examples if chosen is None else None,
        budget=None if epsilon is None else Budget(epsilon=epsilon, delta=delta),
        delta=delta if epsilon is None else None,
        num_steps=num_steps,
        noise_multiplier=noise_multiplier,
    )
    batch_is_known = sampling_prob is None or expected_batch_size is not None
    _show(_record(plan, batch_is_known=batch_is_known), as_json=as_json)


def _show(record: dict[str, Any], *, as_json: bool) -> None:
    print_warnings(record["warnings"])
    if as_json:
        print_json(record)
    else:
        print_table("Plan", plan_rows(record))


def _refuse_fixed_by_recipe(recipe: str, options: Mapping[str, object]) -> None:
    found = [name for name, value in options.items() if value is not None]
    if found:
        raise ConfigError(
            f"The recipe {recipe!r} decides {', '.join(found)}: leave that out, or leave out the recipe.",
            code="plan-recipe",
        )


def _at_scale(
    hardware: Path, ranks: int, parallel: str | None, num_replicas: int, asked: "Request"
) -> dict[str, Any]:
    from reticent.cost import read_hardware
    from reticent.recipes import at_scale

    if asked.config.model_dump()["physical_batch_size"] == "auto":
        raise ConfigError(
            "physical_batch_size = auto is found by trying on the device. For an estimate set a number: "
            "--set physical_batch_size=8",
            code="hardware",
        )
    of_recipe = getattr(asked.config, "parallel", "none")
    several = "ddp" if of_recipe == "none" else of_recipe
    way: Any = parallel or (several if ranks > 1 else "none")
    return at_scale(asked, read_hardware(hardware), ranks=ranks, parallel=way, num_replicas=num_replicas)


def _record_of_recipe(
    target: str, assignments: Sequence[str], scale: "Callable[[Request], dict[str, Any]] | None"
) -> dict[str, Any]:
    from reticent.recipes import (  # torch
        TrainingRecipe,
        plan_of,
        request,
        step_memory,
        with_measured_norm,
        with_physical_batch,
    )

    asked = request(target, assignments)
    recipe = asked.recipe
    if not isinstance(recipe, TrainingRecipe):
        raise ConfigError(
            f"The recipe '{recipe.name}' does not train by gradient steps. What it would do: "
            f"reticent train {recipe.name} --dry-run.",
            code="plan-recipe",
        )
    scaled = None if scale is None else scale(asked)
    asked = asked if scaled else with_measured_norm(with_physical_batch(asked))
    plan = plan_of(asked)
    record = {
        "recipe": asked.recipe.name,
        "private": asked.config.private,
        **_record(plan, batch_is_known=True),
        "unit": plan.unit,
        "num_available": recipe.num_available(asked.config),
        "physical_batch_size": asked.config.model_dump()["physical_batch_size"],
        **({"memory": step_memory(asked)} if scaled is None else {"at_scale": scaled}),
        "chosen": dict(asked.recipe.reasons(asked)),
    }
    if asked.config.noise_seed is not None:
        nothing = dict.fromkeys(("epsilon", "epsilon_rdp", "epsilon_pld"), math.inf)
        warning = "noise_seed makes the noise reproducible: this run would not be private."
        record |= {**nothing, "warnings": [*record["warnings"], warning]}
    return record


def _check_one_left_out(left_out: dict[str, bool]) -> None:
    found = [name for name, missing in left_out.items() if missing]
    if len(found) != 1:
        raise ConfigError(
            f"Leave out exactly one of {', '.join(left_out)}: it is solved for. Left out: "
            f"{', '.join(found) or 'none'}.",
            code="plan-unknowns",
        )


def _sampler(
    scheme: SamplingScheme,
    num_examples: int | None,
    expected_batch_size: float | None,
    sampling_prob: float | None,
    max_batch_size: int | None,
) -> "Sampler | None":
    """The sampler that the options describe; None if its batch size is to be found."""
    from reticent.sample import PoissonSampler, sampler_of

    if max_batch_size is not None and scheme is not SamplingScheme.TRUNCATED_POISSON:
        raise ConfigError(
            f"--max-batch-size is for --sampler truncated-poisson; {scheme} batches are not cut.",
            code="plan-sampling",
        )
    if scheme is not SamplingScheme.POISSON:
        if num_examples is None or sampling_prob is not None:
            raise ConfigError(
                f"{scheme} batches take --num-examples, and no --sampling-prob: their number is public.",
                code="plan-sampling",
            )
    elif (num_examples is None) == (sampling_prob is None):
        raise ConfigError(
            "Give either --num-examples (then it is public) or --sampling-prob (then the number of examples "
            "stays secret).",
            code="plan-sampling",
        )
    if num_examples is None:
        # Epsilon does not depend on the divisor: where it was not given, 1 stands in and is not shown.
        size = 1.0 if expected_batch_size is None else expected_batch_size
        return PoissonSampler(sampling_prob=sampling_prob, expected_batch_size=size)
    if scheme is SamplingScheme.POISSON and expected_batch_size is None:
        return None
    return sampler_of(
        scheme,
        num_examples=num_examples,
        expected_batch_size=expected_batch_size,
        max_batch_size=max_batch_size,
    )


def _staged(
    schedule: str, num_examples: int | None, num_steps: int | None, idle: Mapping[str, object]
) -> "StagedSampler":
    """The Poisson stages that --batch-schedule describes."""
    from reticent.sample import StagedSampler, read_batch_schedule

    given = [name for name, value in idle.items() if value is not None]
    if given or num_examples is None or num_steps is None:
        raise ConfigError(
            "--batch-schedule takes --num-examples and --num-steps, and says itself how Poisson batches "
            f"grow: leave out {', '.join(idle)}.",
            code="plan-sampling",
        )
    return StagedSampler.from_schedule(
        read_batch_schedule(schedule), num_examples=num_examples, num_steps=num_steps
    )


def _record(plan: "Plan", *, batch_is_known: bool) -> dict[str, Any]:
    report = plan.epsilon()
    batch = plan.mean_batch_size if batch_is_known else None
    described = plan.describe()
    noise_std = described["noise_std"]
    epochs = sum(kind.num_steps * kind.sampler.sampling_prob for kind in plan.steps)
    return {
        "noise_multiplier": plan.noise_multiplier,
        "num_steps": plan.num_steps,
        "expected_batch_size": batch,
        "epsilon": report.epsilon,
        "epsilon_rdp": report.epsilon_rdp,
        "epsilon_pld": report.epsilon_pld,
        "epsilon_budget": None if plan.budget is None else plan.budget.epsilon,
        "delta": plan.delta,
        "neighbouring_relation": plan.relation.value,
        "accountant": report.accountant,
        "sampler": plan.sampler.scheme.value,
        "sampling_prob": plan.of_steps(lambda kind: kind.sampler.sampling_prob),
        "num_examples": plan.sampler.num_examples,
        "clipping": described["clipping"],
        "max_norm": sensitivity(plan.clipping),
        "gradient_noise_multiplier": described["gradient_noise_multiplier"],
        "count_noise_multiplier": described["count_noise_multiplier"],
        "noise_std": noise_std,
        "noise_std_of_mean": None
        if batch is None
        else plan.of_steps(
            lambda kind: (
                kind.gradient_noise_multiplier * sensitivity(plan.clipping) / kind.expected_batch_size
            )
        ),
        "stages": plan.stages(),
        "epochs": epochs,
        "updates": plan.num_steps,
        "example_gradients": None if batch is None else plan.num_steps * batch,
        "notes": list(report.notes),
        "warnings": list(plan.warnings()) if batch_is_known else [],
    }
