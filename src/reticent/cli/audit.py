"""`reticent audit TARGET`: try to refute what a run, a recipe or anybody's trainer claims.

Room: cli.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reticent.cli._run_screen import progress_console
from reticent.cli._show import print_json, print_table, rounded_up

if TYPE_CHECKING:
    from reticent.audit import AuditResult


@click.command("audit", short_help="Try to refute the epsilon of a run, a recipe or a trainer of yours.")
@click.argument("target", metavar="RUN|RECIPE|MODULE:function")
@click.option(
    "--how",
    type=click.Choice(["step", "one-run", "inputs"]),
    default="step",
    show_default=True,
    help="step, one-run: gradient canaries, guessed at in each step or once; inputs: strange rows, guessed "
    "at from the trained model.",
)
@click.option(
    "--inputs",
    "kind",
    type=click.Choice(["mislabelled", "out-of-distribution", "random-tokens"]),
    help="Of --how inputs: what is strange.  [default: random-tokens for recipes on texts, "
    "out-of-distribution for recipes on images, else mislabelled]",
)
@click.option("--canaries", "num_canaries", type=click.IntRange(2), default=1000, show_default=True)
@click.option(
    "--directions",
    type=click.Choice(["dirac", "random"]),
    default="dirac",
    show_default=True,
    help="Of gradient canaries: each its own coordinate, or dense and orthogonal.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Steps to run for it.  [default: the plan's; with --how step at most 100]",
)
@click.option("--confidence", type=float, default=0.999, show_default=True, help="Of the lower bound.")
@click.option("--probes/--no-probes", default=True, help="Also probe sampling, noise and sensitivity.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A recipe's setting; repeatable.")
@click.option("--epsilon", type=float, help="What a function claims.  [default: 8]")
@click.option("--delta", type=float, help="The delta of a function's claim.  [default: 1e-5]")
@click.option("--claimed-steps", type=int, help="Steps of a function's plan.  [default: 100]")
@click.option(
    "--sampling-prob", type=float, help="Sampling probability of a function's plan.  [default: 0.1]"
)
@click.option("--seed", type=int, help="Of coins and canaries; by default the operating system's.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the audit as JSON.  [default: RUN/audit.json for a run, else nowhere]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    target: str,
    how: str,
    kind: str | None,
    num_canaries: int,
    directions: str,
    steps: int | None,
    confidence: float,
    probes: bool,
    settings: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    seed: int | None,
    **claim: float | int | None,
) -> None:
    """Measure a lower bound on the epsilon of TARGET, and probe how it samples, clips and adds noise.

    Of a run or a recipe, its model, losses, clipping and plan are trained again beside canaries, on made-up
    rows: no private data are read and nothing of the run is spent. A function is given a
    `reticent.audit.Problem`, or rows with --how inputs. A run's report is written again, with the audit.

    Exits with status 1 if the bound is above the claim or a probe fails. That neither happens proves nothing:
    an audit can only refute.
    """
    found = _found(
        ctx,
        target,
        settings,
        how=how,
        claim={name: value for name, value in claim.items() if value is not None},
        options=_options(ctx, how, kind=kind, steps=steps, probes=probes, directions=directions)
        | {"num_canaries": num_canaries, "confidence": confidence, "seed": seed},
    )
    record = found.to_dict()
    path = _write(target, out, record)
    if as_json:
        from reticent.audit import summary

        print_json({**summary(record), "audit": None if path is None else str(path)})
    else:
        print_table(f"Audit of {target}", _rows(found, path))
    if not found.passed:
        ctx.exit(1)


def _options(
    ctx: click.Context,
    how: str,
    *,
    kind: str | None,
    steps: int | None,
    probes: bool,
    directions: str,
) -> dict[str, Any]:
    """What the chosen way of auditing reads; what it would ignore is refused."""
    if how == "inputs":
        for name in ("directions", "probes"):
            if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(
                    f"--{name} is of gradient canaries, and --how inputs sees the trained model only.", ctx
                )
        return {"kind": None if kind is None else kind.replace("-", " "), "num_steps": steps}
    if kind is not None:
        raise click.UsageError("--inputs is read with --how inputs.", ctx)
    if steps is not None and how == "one-run":
        raise click.UsageError("--how one-run takes all steps of the plan: leave --steps out.", ctx)
    return {"num_steps": steps, "probes": probes, "directions": directions}


def _found(
    ctx: click.Context,
    target: str,
    settings: tuple[str, ...],
    *,
    how: str,
    claim: dict[str, Any],
    options: dict[str, Any],
) -> "AuditResult":
    """Send the target to who can audit it; an option that it would not read is refused."""
    is_function = ":" in target and not Path(target).exists()
    is_run = Path(target).is_dir()
    if claim and not is_function:
        raise click.UsageError(
            f"{', '.join('--' + name.replace('_', '-') for name in claim)}: what a run or a recipe claims is "
            "read from it. Only a function has to be told.",
            ctx,
        )
    if settings and (is_function or is_run):
        raise click.UsageError("--set changes a recipe's settings, and the target is none.", ctx)
    if is_function:
        if options.pop("num_steps") is not None:
            raise click.UsageError("--steps is of recipes and runs; a function's are --claimed-steps.", ctx)
        from reticent.audit import audit_function  # torch is slow to import; --help should not wait for it

        return audit_function(target, how=how, console=progress_console(), **claim, **options)  # type: ignore[arg-type]
    from reticent import recipes

    options["console"] = progress_console()
    if how == "inputs":
        if is_run:
            return recipes.audit_run_inputs(Path(target), **options)
        return recipes.audit_recipe_inputs(recipes.request(target, settings), **options)
    options["one_run"] = how == "one-run"
    if is_run:
        return recipes.audit_run(Path(target), **options)
    return recipes.audit_recipe(recipes.request(target, settings), **options)


def _write(target: str, out: Path | None, record: dict[str, Any]) -> Path | None:
    from reticent.train import write_json

    folder = Path(target)
    if out is None and not folder.is_dir():
        return None
    path = out or folder / "audit.json"
    write_json(path, record)
    if path.parent == folder and (folder / "report.html").is_file():
        from reticent.report import write_report

        write_report(folder)
    return path


def _rows(found: "AuditResult", path: Path | None) -> list[tuple[str, str]]:
    bound = found.bound
    rows = [
        ("verdict", "nothing found against the claim" if found.passed else "THE CLAIM DOES NOT HOLD"),
        ("epsilon claimed", rounded_up(found.claim.epsilon)),
        ("epsilon at least", f"{bound.epsilon:.4g} at {100 * bound.confidence:g} % confidence"),
        ("delta", f"{found.claim.delta:g}"),
        ("method", bound.method),
    ]
    if (seen := found.exposure) is not None:
        rows.append(
            (
                "exposure",
                f"{seen.bits_in:.2f} bits in the data, {seen.bits_out:.2f} left out (1.44 is chance; at most "
                f"{math.log2(seen.num_references + 1):.2f}); median rank {seen.rank_in:g} and "
                f"{seen.rank_out:g} of {seen.num_references + 1:,}",
            )
        )
    for probe in found.probes:
        mark = "" if probe.passed and probe.tested else "not tested: " if probe.passed else "FAILED: "
        rows.append((probe.name, mark + probe.finding))
    return rows if path is None else [*rows, ("audit", str(path))]
