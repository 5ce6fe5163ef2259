"""`reticent account`: the epsilon of numbers given, or of the ledgers of one or several runs.

Room: cli.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reticent.cli._show import print_json, print_table, rounded_up
from reticent.errors import ConfigError
from reticent.records import RELATIONS, SIZES, EpsilonReport, Mechanism, NeighbouringRelation, SamplingScheme

if TYPE_CHECKING:  # the accountant is slow to import; --help should not wait for it
    from reticent.account import Segments
    from reticent.account.ledger import LedgerView

_OF_EACH = ("run", "run_id", "private", "epsilon", "num_steps", "reproducible")
_NUMBERS = (
    *("--sampler", "--sampling-prob", "--num-examples", "--expected-batch-size", "--max-batch-size"),
    *("--noise-multiplier", "--num-steps"),
)
_SIZES = ("--num-examples", "--expected-batch-size", "--max-batch-size")


@click.command("account", short_help="State the epsilon of numbers, or of one or several runs.")
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=click.Path(path_type=Path))
@click.option(
    "--sampler",
    type=click.Choice([s.value for s in SamplingScheme]),
    help="How each step draws examples.",
)
@click.option(
    "--sampling-prob", type=float, help="Probability that an example takes part in a step (poisson)."
)
@click.option("--num-examples", type=int, help="Number of examples, where the sampler makes it public.")
@click.option("--expected-batch-size", type=float, help="Of samplers other than poisson and full-batch.")
@click.option("--max-batch-size", type=int, help="Of truncated-poisson.")
@click.option("--noise-multiplier", type=float, help="Noise standard deviation over the clipping bound.")
@click.option("--num-steps", type=int, help="Number of steps performed.")
@click.option("--delta", type=float, help="Delta of the statement; by default the ledger's.")
@click.option(
    "--user-rows",
    type=int,
    help="State also the epsilon of a user who has up to this many of the rows, each drawn by itself.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    runs: tuple[Path, ...],
    sampler: str | None,
    sampling_prob: float | None,
    num_examples: int | None,
    expected_batch_size: float | None,
    max_batch_size: int | None,
    noise_multiplier: float | None,
    num_steps: int | None,
    delta: float | None,
    user_rows: int | None,
    as_json: bool,
) -> None:
    """State the epsilon of a run's ledger, or of the numbers given.

    RUN is a run's folder, or its ledger file. Several runs are stated together, as runs on the same
    data whose results are all seen. Without RUN, give --sampler, --noise-multiplier, --num-steps and
    --delta (and --sampling-prob for poisson; --num-examples and --expected-batch-size for other samplers).

    Numbers of poisson and full-batch steps are stated for adding or removing one example; zeroing one
    out, the relation of a plan whose number of examples is public, has the same numbers. Those of other
    samplers are stated for the relation that their bound is known for.

    Of a run that `reticent sweep` kept as the best of several, the epsilon is that of the choice.

    With --user-rows K the same steps are also stated for somebody who has up to K of the rows: a mixture
    of Gaussians, never K times the epsilon. It needs one RUN, or numbers.
    """
    from reticent.account import epsilon

    if user_rows is not None and len(runs) > 1:
        raise ConfigError(
            "--user-rows states one run at a time: how many rows a user has is another number in each data "
            "set. Give one RUN.",
            code="account-arguments",
        )
    chosen = [str(run) for run in runs if _chosen(run)]
    if chosen and (len(runs) > 1 or user_rows is not None):
        raise ConfigError(
            f"{', '.join(chosen)} was kept as the best of several runs, which its ledger does not hold: it "
            "can be stated alone, and for one row. Give that RUN only.",
            code="account-arguments",
        )
    sizes = (num_examples, expected_batch_size, max_batch_size)
    numbers = dict(zip(_NUMBERS, (sampler, sampling_prob, *sizes, noise_multiplier, num_steps), strict=True))
    if runs:
        idle = [name for name, value in numbers.items() if value is not None]
        if idle:
            raise ConfigError(
                f"A run's ledger already says {', '.join(idle)}: leave them out.", code="account-arguments"
            )
        if chosen:
            record = _of_choice(runs[0], delta)
        else:
            record = _of_run(runs[0], delta, user_rows) if len(runs) == 1 else _of_runs(runs, delta)
    else:
        mechanism, relation = _mechanism(sampler, sampling_prob, noise_multiplier, sizes)
        if num_steps is None or delta is None:
            raise _missing("--num-steps" if num_steps is None else "--delta")
        report = epsilon([(mechanism, num_steps)], delta=delta, relation=relation)
        record = _of_report(report, private=math.isfinite(report.epsilon))
        record |= _risks(report, [(mechanism, num_steps)], private=record["private"])
        record |= _of_users([(mechanism, num_steps)], report, user_rows, private=record["private"])
    if as_json:
        print_json(record)
    else:
        print_table("Privacy", _rows(record))


def _mechanism(
    sampler: str | None,
    sampling_prob: float | None,
    noise_multiplier: float | None,
    sizes: tuple[int | None, float | None, int | None],
) -> tuple[Mechanism, NeighbouringRelation]:
    """A step of these numbers, and the relation to state it for."""
    if sampler is None:
        raise _missing("--sampler")
    if noise_multiplier is None:
        raise _missing("--noise-multiplier")
    scheme = SamplingScheme(sampler)
    if not SIZES[scheme]:
        return _unsized(scheme, sampling_prob, noise_multiplier, sizes)
    from reticent.sample import sampler_of

    num_examples, expected_batch_size, max_batch_size = sizes
    if sampling_prob is not None:
        raise ConfigError(
            f"{scheme} batches take --num-examples and --expected-batch-size, and no --sampling-prob.",
            code="account-arguments",
        )
    if num_examples is None or expected_batch_size is None:
        raise _missing("--num-examples" if num_examples is None else "--expected-batch-size")
    drawn = sampler_of(
        scheme,
        num_examples=num_examples,
        expected_batch_size=expected_batch_size,
        max_batch_size=max_batch_size,
    )
    return drawn.mechanism(noise_multiplier), RELATIONS[scheme][0]


def _unsized(
    scheme: SamplingScheme,
    sampling_prob: float | None,
    noise_multiplier: float,
    sizes: tuple[int | float | None, ...],
) -> tuple[Mechanism, NeighbouringRelation]:
    idle = [name for name, size in zip(_SIZES, sizes, strict=True) if size is not None]
    if idle:
        raise ConfigError(
            f"The epsilon of {scheme} steps does not depend on {', '.join(idle)}: leave that out. A poisson "
            "step takes --sampling-prob.",
            code="account-arguments",
        )
    if sampling_prob is None:
        if scheme is not SamplingScheme.FULL_BATCH:
            raise _missing("--sampling-prob")
        sampling_prob = 1.0
    mechanism = Mechanism(scheme=scheme, sampling_prob=sampling_prob, noise_multiplier=noise_multiplier)
    return mechanism, NeighbouringRelation.ADD_OR_REMOVE


def _missing(option: str) -> ConfigError:
    return ConfigError(
        f"{option} is missing: give a RUN folder, or --sampler, --noise-multiplier, --num-steps and --delta "
        "(and --sampling-prob for poisson; --num-examples and --expected-batch-size for other samplers).",
        code="account-arguments",
    )


def _read(run: Path) -> "LedgerView":
    from reticent.account.ledger import read_ledger, read_run_ledger

    return read_run_ledger(run) if run.is_dir() else read_ledger(run)


def _chosen(run: Path) -> bool:
    """Whether a run was kept as the best of several: its ledger holds its own steps alone."""
    return ((run if run.is_dir() else run.parent) / "selection.json").is_file()


def _of_choice(run: Path, delta: float | None) -> dict[str, Any]:
    """What the choice among several runs costs: that of the one that was kept is not the whole truth."""
    from reticent.report import read_run, state

    known = read_run(run if run.is_dir() else run.parent)
    statement, view = state(known, num_points=1), known.ledger
    if statement.report is None or view is None:
        raise ConfigError(f"'{run}' was kept without privacy: it has no epsilon.", code="account-arguments")
    if delta not in (None, view.delta):
        raise ConfigError(
            "A choice among runs is stated at the delta of its runs: leave --delta out.",
            code="account-arguments",
        )
    return _of_report(statement.report, private=statement.private) | {
        **_of_ledger(run, view),
        **{"advantage": None, "trade_off": None, "reconstruction": None, "risk_source": "not computed"},
        "unit": view.public.get("unit", "example"),
        "notes": [*statement.report.notes, *statement.warnings, *_ledger_notes(view)],
    }


def _of_ledger(run: Path, view: "LedgerView") -> dict[str, Any]:
    """What a ledger says beside an epsilon."""
    return {
        "run": str(run),
        "run_id": view.run_id,
        "planned_steps": view.planned_steps,
        "num_lost": view.num_lost,
        "reproducible": view.reproducible,
        "mechanisms": [_described(mechanism, count) for mechanism, count in view.segments()],
    }


def _of_runs(runs: Sequence[Path], delta: float | None) -> dict[str, Any]:
    """All runs together, and beside them each one's own epsilon."""
    from reticent.account import compose_runs

    views = [_read(run) for run in runs]
    report = compose_runs(views, delta=delta)
    each = [_of_run(run, report.delta) for run in runs]
    record = _of_report(report, private=math.isfinite(report.epsilon))
    segments = [segment for view in views for segment in view.segments()]
    record |= _risks(report, segments, private=record["private"])
    return record | {"runs": [{name: one[name] for name in _OF_EACH} for one in each]}


def _of_run(run: Path, delta: float | None, user_rows: int | None = None) -> dict[str, Any]:
    from reticent.account import epsilon

    view = _read(run)
    report = epsilon(view.segments(), delta=view.delta if delta is None else delta, relation=view.relation)
    private = math.isfinite(report.epsilon) and not view.reproducible
    record = _of_report(report, private=private) | _of_ledger(run, view)
    record |= _risks(report, view.segments(), private=private)
    if user_rows is not None and view.public.get("unit", "example") != "example":
        raise ConfigError(
            f"The units of this run are {view.public['unit']}s already: its epsilon is theirs. Leave "
            "--user-rows out.",
            code="account-arguments",
        )
    record |= {"unit": view.public.get("unit", "example")}
    record |= _of_users(view.segments(), report, user_rows, private=private)
    return record | {"notes": record["notes"] + _ledger_notes(view)}


def _of_report(report: EpsilonReport, *, private: bool) -> dict[str, Any]:
    """What is stated; nothing finite for a run that is not private."""
    return {
        "private": private,
        "epsilon": report.epsilon if private else None,
        "epsilon_rdp": report.epsilon_rdp if private else None,
        "epsilon_pld": report.epsilon_pld if private else None,
        "delta": report.delta,
        "neighbouring_relation": report.neighbouring_relation.value,
        "accountant": report.accountant,
        "num_steps": report.num_steps,
        "notes": list(report.notes),
    }


def _risks(report: EpsilonReport, segments: "Segments", *, private: bool) -> dict[str, Any]:
    """What the epsilon means for an attacker; nothing is bounded for a run that is not private."""
    from reticent.account import risk

    found = risk(report, segments) if private else None
    return {
        "advantage": found.advantage if found else 1.0,
        "trade_off": [list(point) for point in found.trade_off] if found else None,
        "reconstruction": [list(point) for point in found.reconstruction] if found else None,
        "risk_source": found.source if found else "no privacy",
    }


def _of_users(
    segments: "Segments", report: EpsilonReport, user_rows: int | None, *, private: bool
) -> dict[str, Any]:
    """The same steps for somebody with several rows, where that was asked for."""
    if user_rows is None:
        return {}
    from reticent.account import group_epsilon

    group = group_epsilon(
        segments, group_size=user_rows, delta=report.delta, relation=report.neighbouring_relation
    )
    known = private and math.isfinite(group.epsilon)
    return {
        "user_rows": user_rows,
        "user_epsilon": group.epsilon if known else None,
        "user_accountant": group.accountant,
    }


def _described(mechanism: Mechanism, num_steps: int) -> dict[str, Any]:
    described = mechanism.describe()
    return {"sampler": described.pop("scheme"), **described, "num_steps": num_steps}


def _ledger_notes(view: "LedgerView") -> list[str]:
    notes = []
    if view.reproducible:
        notes.append("the noise can be reproduced from a seed: this run is not private.")
    if view.num_lost:
        notes.append(f"{view.num_lost} steps were lost in a crash; they stay spent.")
    return notes


def _rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    none = "infinite: no privacy"
    rows = [
        ("epsilon", rounded_up(record["epsilon"]) if record["private"] else none),
        ("delta", f"{record['delta']:g}"),
        ("neighbouring relation", record["neighbouring_relation"]),
        ("accountant", record["accountant"]),
        ("epsilon by RDP", rounded_up(record["epsilon_rdp"]) if record["private"] else none),
        ("steps", str(record["num_steps"])),
    ]
    if "unit" in record:
        rows.append(("privacy unit", record["unit"]))
    if "user_rows" in record:
        user = none if record["user_epsilon"] is None else rounded_up(record["user_epsilon"])
        rows.append((f"epsilon of a user with {record['user_rows']} rows", user))
    if record["reconstruction"]:
        rows.append(("membership advantage", f"at most {rounded_up(record['advantage'], 3)}"))
        shown = [p for p in record["reconstruction"] if p[0] in (1e-3, 1e-2, 0.1)]
        rows += [
            ("reconstruction", f"{prior:g} before, at most {rounded_up(b, 3)} after") for prior, b in shown
        ]
    if "planned_steps" in record:
        rows.append(("planned steps", str(record["planned_steps"])))
        rows += [("mechanism", ", ".join(f"{k} {v}" for k, v in m.items())) for m in record["mechanisms"]]
    for one in record.get("runs", ()):
        alone = rounded_up(one["epsilon"]) if one["private"] else none
        rows.append((one["run"], f"epsilon {alone} alone, {one['num_steps']} steps"))
    return rows + [("note", note) for note in record["notes"]]
