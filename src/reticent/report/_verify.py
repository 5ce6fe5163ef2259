"""Whether a run folder's parts agree, and its epsilon holds, without trusting any number in it.

Room: report. May import `reticent.{account,plan}` and the floors below; never torch.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Final

from reticent.account import cross_check, epsilon, first_steps, verify_traces
from reticent.account.ledger import LedgerView
from reticent.errors import ReticentError
from reticent.plan import Plan
from reticent.records import SIZES, EpsilonReport, Mechanism, SamplingScheme
from reticent.report._files import bytes_of, is_whole, sha256_of, tensors_of, text_of
from reticent.report._plain_ledger import spent_by_plain_reading
from reticent.report._run import Run, read_run
from reticent.report._statement import Statement, state

_CLOSE: Final = 1e-6
_PARTS: Final = "parts.json"
_NOTED: Final = ("weights_sha256", "adapter_sha256")  # in a result: file -> its SHA-256
_DAMAGE: Final = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(RecursionError, OverflowError, struct.error),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was checked of a run, and what is wrong with it.

    Args:
        run: the folder.
        sound: nothing is wrong. A run that is not private, and says so, is sound.
        problems: what is wrong, each in a sentence.
        checks: name -> what was found, of every check that could be made.
        left_out: name -> why a check could not be made.
        private: whether an epsilon can be stated.
        report: that epsilon; None without a ledger that can be read.
        statement: the privacy statement, as JSON values; None if nothing can be stated.
    """

    run: Path
    sound: bool
    problems: tuple[str, ...]
    checks: Mapping[str, str]
    left_out: Mapping[str, str]
    private: bool
    report: EpsilonReport | None
    statement: Mapping[str, Any] | None

    @property
    def statement_sha256(self) -> str | None:
        """SHA-256 of the statement's JSON text with sorted keys and no spaces: to publish or deposit."""
        if self.statement is None:
            return None
        text = json.dumps(self.statement, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


class _Findings:
    """Checks made so far."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.checks: dict[str, str] = {}
        self.left_out: dict[str, str] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the folder whose damage is a problem, and no crash."""
        try:
            yield
        except ReticentError as error:
            self.problems.append(f"{name}: {error}")
        except _DAMAGE as error:
            self.problems.append(f"{name}: damaged ({type(error).__name__}).")

    def expect(self, name: str, ok: bool, good: str, bad: str) -> None:
        """One comparison."""
        if ok:
            self.checks[name] = good
        else:
            self.problems.append(f"{name}: {bad}")


def verify_run(folder: str | Path) -> Verification:
    """Check a run folder: its ledger, what else speaks of the same steps, and the number.

    | part | what is checked |
    |---|---|
    | ledger | the chain of hashes, by two readers that share no code |
    | other files | none was written after more steps than the ledger holds |
    | plan | the ledger's steps, noise, sampling, clipping, delta and relation are the plan's |
    | settings | noise that repeats, and rows shown without noise, are noted in the ledger |
    | checkpoints | SHA-256, header, and their place in the ledger's chain |
    | weights | the released weights, and their average, are those of the last checkpoint, byte for byte |
    | model | every file of weights that the result notes is the one noted, by its SHA-256; none was added |
    | result | its epsilon, delta, steps and place in the chain are the ledger's |
    | epsilon | RDP in closed form, a PLD on a second grid, a contour integral |

    Args:
        folder: a run's folder.

    Returns:
        What was found. Nothing in the folder is changed.

    Raises:
        ConfigError[not-a-run]: there is no run in the folder. Everything else that is wrong is a problem.
    """
    folder = Path(folder)
    found = _Findings()
    try:
        run = read_run(folder)
    except ReticentError as error:
        if error.code == "not-a-run":
            raise
        found.problems.append(str(error))
        return _verification(folder, found, private=False, report=None, statement=None)
    return verify_read(run)


def verify_read(run: Run) -> Verification:
    """As `verify_run`, of a run that was read already."""
    folder, found = run.folder, _Findings()
    if run.ledger is None:
        found.left_out["ledger"] = "the run says that it is not private, and kept none"
        return _verification(folder, found, private=False, report=None, statement=None)
    ledger, statement = run.ledger, None
    with found.part("statement"):
        statement = state(run, num_points=1)
    with found.part("ledger"):
        _check_ledger(folder, ledger, found)
    with found.part("other files"):
        agreeing = verify_traces(ledger, folder)
        found.checks["other files"] = f"{agreeing} of them name steps; the ledger holds all of these"
    with found.part("plan"):
        _check_plan(run, ledger, found)
    with found.part("checkpoints"):
        _check_checkpoints(folder, ledger, found)
    with found.part("weights"):
        _check_weights(folder, ledger, found)
    with found.part("model"):
        _check_noted(folder, found)
    if statement is None:
        return _verification(folder, found, private=False, report=None, statement=None)
    with found.part("result"):
        _check_result(folder, ledger, statement, found)
    with found.part("epsilon"):
        _check_epsilon(ledger, found)
    _note_version(run, found)
    return _verification(
        folder,
        found,
        private=statement.private,
        report=statement.report,
        statement=_stated(run, ledger, statement),
    )


def _verification(
    folder: Path,
    found: _Findings,
    *,
    private: bool,
    report: EpsilonReport | None,
    statement: Mapping[str, Any] | None,
) -> Verification:
    return Verification(
        run=folder,
        sound=not found.problems,
        problems=tuple(found.problems),
        checks=found.checks,
        left_out=found.left_out,
        private=private and not found.problems,
        report=report,
        statement=statement if not found.problems else None,
    )


def _check_ledger(folder: Path, ledger: LedgerView, found: _Findings) -> None:
    plain = spent_by_plain_reading(folder / "ledger.jsonl")
    ours = [
        ((m.scheme.value, m.sampling_prob, m.noise_multiplier, *_sizes(m)), n) for m, n in ledger.segments()
    ]
    same = plain.segments == ours and (plain.head, plain.reproducible) == (ledger.head, ledger.reproducible)
    found.expect(
        "ledger",
        same,
        f"chain whole over {ledger.num_steps} steps; two readers agree",
        "two readers of the chain disagree on what was spent.",
    )
    within = ledger.num_steps <= ledger.planned_steps
    found.expect("steps", within, "within the plan", "more steps were entered than were planned.")


def _sizes(mechanism: Mechanism) -> list[tuple[str, int]]:
    known = mechanism.describe()
    return [(name, known[name]) for name in sorted(known) if name in SIZES[mechanism.scheme]]


def _check_plan(run: Run, ledger: LedgerView, found: _Findings) -> None:
    if run.about.plan is None:
        found.expect("plan", not run.about.private, "none", "the run says it is private, and has no plan.")
        return
    record: dict[str, Any] = {**run.about.plan}
    pairs = (_pairs_of_stages if "stages" in record else _pairs_of_steps)(record, ledger)
    pairs = [*pairs, *_pairs_of_settings(run, ledger)]
    wrong = sorted({name for name, theirs, ours in pairs if theirs != ours})
    found.expect(
        "plan",
        not wrong,
        "the ledger's steps are the plan's",
        f"run.json and the ledger differ in {', '.join(wrong)}. The ledger is what ran.",
    )
    budget = record["budget"]
    if budget is not None and not ledger.reproducible:
        target = float(budget["epsilon"])
        spent = epsilon(ledger.segments(), delta=ledger.delta, relation=ledger.relation).epsilon
        found.expect(
            "budget",
            spent <= target * (1.0 + _CLOSE),
            f"{spent:.6g} of {target:g}",
            f"the steps in the ledger spend {spent:.6g}, more than the budget's {target:g}.",
        )


def _pairs_of_steps(record: Mapping[str, Any], ledger: LedgerView) -> list[tuple[str, Any, Any]]:
    """(name, what the ledger says, what the plan says), for a plan of gradient steps."""
    plan = Plan.from_dict(record)
    return [
        ("num_steps", ledger.planned_steps, plan.num_steps),
        ("delta", ledger.delta, plan.delta),
        ("neighbouring relation", ledger.relation, plan.relation),
        ("unit", ledger.public.get("unit", "example"), plan.unit),
        ("clipping", ledger.public.get("clipping"), plan.describe()["clipping"]),
        (
            "expected batch size",
            ledger.public.get("expected_batch_size"),
            plan.of_steps(lambda kind: kind.expected_batch_size),
        ),
        ("number of examples", *_if_noted(ledger, "num_examples", plan.sampler.num_examples)),
        ("stages", *_if_noted(ledger, "stages", plan.stages(), missing=[])),
        ("mechanism", _entered(ledger), first_steps(plan.segments(), ledger.num_steps)),
    ]


def _pairs_of_settings(run: Run, ledger: LedgerView) -> list[tuple[str, Any, Any]]:
    """The same, for settings that end the guarantee or show rows of the data."""
    settings = run.about.settings
    shown = [name for name in ("loss", "norms") if settings.get(f"show_{name}")]
    return [
        ("noise_seed", ledger.reproducible or settings.get("noise_seed") is None, True),
        ("what is shown without noise", *_if_noted(ledger, "not_private", shown, missing=[])),
    ]


def _if_noted(ledger: LedgerView, name: str, ours: Any, *, missing: Any = None) -> tuple[Any, Any]:
    """What the ledger notes under a name, and what it should; a ledger without the note says `missing`."""
    return ledger.public.get(name, ours if missing is None else missing), ours


def _pairs_of_stages(record: Mapping[str, Any], ledger: LedgerView) -> list[tuple[str, Any, Any]]:
    """The same, for a plan of stages that release different things one after the other."""
    planned = [
        (
            Mechanism(
                scheme=SamplingScheme(stage["scheme"]),
                sampling_prob=stage["sampling_prob"],
                noise_multiplier=stage["noise"],
            ),
            int(stage["num_steps"]),
        )
        for stage in record["stages"]
    ]
    return [
        ("num_steps", ledger.planned_steps, sum(count for _, count in planned)),
        ("delta", ledger.delta, record["delta"]),
        ("neighbouring relation", ledger.relation.value, record["neighbouring_relation"]),
        ("number of examples", ledger.public.get("num_examples"), record["num_examples"]),
        ("mechanism", _entered(ledger), first_steps(planned, ledger.num_steps)),
    ]


def _entered(ledger: LedgerView) -> tuple[tuple[Mechanism, int], ...]:
    """What was spent, neighbours of one mechanism together."""
    return first_steps(ledger.segments(), ledger.num_steps)


def _check_checkpoints(folder: Path, ledger: LedgerView, found: _Findings) -> None:
    index = folder / "checkpoint.json"
    if not index.exists():
        found.left_out["checkpoints"] = "there are none"
        return
    for entry in json.loads(text_of(index))["checkpoints"]:
        path = folder / Path(str(entry["file"])).name
        name = f"checkpoint at step {entry['step']}"
        noted = path / _PARTS if path.is_dir() else path
        if not noted.is_file() or sha256_of(noted) != entry["sha256"]:
            found.problems.append(f"{name}: '{path.name}' is missing, or its SHA-256 is not the one noted.")
            continue
        if path.is_dir():
            header = json.loads(text_of(noted))
            bad = [part for part, digest in header["parts"].items() if not is_whole(path, part, digest)]
            if bad:
                found.problems.append(
                    f"{name}: a part of it is missing, or its SHA-256 is not the one noted."
                )
                continue
        else:
            header = json.loads(tensors_of(path)[0]["__metadata__"]["reticent"])
        noted = {key: entry[key] for key in ("step", "updates", "ledger_head")}
        same = noted == {key: header[key] for key in noted}
        in_chain = ledger.steps_at(str(entry["ledger_head"])) == entry["step"]
        found.expect(
            name,
            same and in_chain,
            "whole, and at its place in the ledger's chain",
            "its place in the ledger's chain is gone, or its header says another.",
        )


def _check_weights(folder: Path, ledger: LedgerView, found: _Findings) -> None:
    weights, index = folder / "weights.safetensors", folder / "checkpoint.json"
    if not weights.exists() or not index.exists():
        found.left_out["weights"] = "the run has not ended, or kept no checkpoint"
        return
    newest = json.loads(text_of(index))["checkpoints"][0]
    if newest["step"] != ledger.num_steps:
        found.problems.append("weights: the last checkpoint is not of the last step in the ledger.")
        return
    checkpoint = folder / Path(str(newest["file"])).name
    if checkpoint.is_dir():
        found.left_out["weights"] = (
            "the last checkpoint is in the parts of several ranks; their bytes are checked"
        )
        return
    kept = bytes_of(checkpoint, prefix="model/")
    found.expect(
        "weights",
        bytes_of(weights) == kept,
        "those of the last checkpoint",
        "weights.safetensors does not hold the weights of the last checkpoint.",
    )
    for kind, name in (("ema", "averaged weights"), ("polyak", "plain mean of weights")):
        averaged = folder / f"{kind}.safetensors"
        if averaged.exists():
            average = bytes_of(checkpoint, prefix=f"{kind}/")
            found.expect(
                name,
                bool(average) and bytes_of(averaged) == {**kept, **average},
                "those of the last checkpoint",
                f"{averaged.name} does not hold the average of the last checkpoint.",
            )


def _check_noted(folder: Path, found: _Findings) -> None:
    """The files that a result notes by their digests: what `predict` and transformers load."""
    kept = folder / "result.json"
    if not kept.exists():
        found.left_out["model"] = "the run has not ended"
        return
    result = json.loads(text_of(kept))
    noted = {name: digest for key in _NOTED for name, digest in result.get(key, {}).items()}
    if not noted:
        found.left_out["model"] = "the result notes no files of weights"
        return
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in noted):
        raise ValueError("a file outside the run's folder")
    there = [name for name in noted if os.path.lexists(folder / name)]
    for beside in sorted({PurePosixPath(name).parent for name in noted} - {PurePosixPath(".")}):
        files = (path.relative_to(folder).as_posix() for path in (folder / beside).glob("*.safetensors"))
        found.problems += [
            f"model: '{name}' is no file that the run left." for name in sorted(set(files) - noted.keys())
        ]
    changed = [name for name in there if sha256_of(folder / name) != noted[name]]
    found.problems += [f"model: the SHA-256 of '{name}' is not the one noted." for name in changed]
    if missing := sorted(noted.keys() - set(there)):
        found.left_out["model"] = f"not there: {', '.join(missing)}"
    elif not changed:
        found.checks["model"] = f"{len(noted)} of its files of weights, each as noted"


def _check_result(folder: Path, ledger: LedgerView, statement: Statement, found: _Findings) -> None:
    path = folder / "result.json"
    if not path.exists():
        found.left_out["result"] = "the run has not ended"
        return
    result = json.loads(text_of(path))
    private = statement.private and statement.report is not None
    wrong = []
    if bool(result["private"]) != private:
        wrong.append("whether the run is private")
    stated = result.get("epsilon")
    if private and statement.report and not _close(stated, statement.report.epsilon):
        wrong.append(f"epsilon ({stated}, the ledger gives {statement.report.epsilon:.8g})")
    if not private and stated is not None:
        wrong.append(f"epsilon ({stated}, where none can be stated)")
    ours = {"delta": ledger.delta, "num_steps": ledger.num_steps, "num_lost": ledger.num_lost}
    ours |= {"neighbouring_relation": ledger.relation.value, "ledger_head": ledger.head}
    wrong += [
        f"{name} ({result[name]!r})" for name, value in ours.items() if result.get(name, value) != value
    ]
    found.expect(
        "result", not wrong, "says what the ledger says", f"result.json is wrong in {', '.join(wrong)}."
    )


def _close(stated: Any, truth: float) -> bool:
    number = isinstance(stated, int | float) and not isinstance(stated, bool)
    return (
        number and math.isclose(stated, truth, rel_tol=1e-4, abs_tol=1e-9) and stated >= truth * (1 - _CLOSE)
    )


def _check_epsilon(ledger: LedgerView, found: _Findings) -> None:
    report = epsilon(ledger.segments(), delta=ledger.delta, relation=ledger.relation)
    for check in cross_check(report, ledger.segments()):
        if check.holds is None:
            found.left_out[check.name] = check.detail
        else:
            found.expect(check.name, check.holds, check.detail, f"does not hold: {check.detail}.")


def _note_version(run: Run, found: _Findings) -> None:
    theirs, ours = run.about.environment.get("reticent"), version("reticent")
    if theirs == ours:
        found.checks["code version"] = f"reticent {ours}, as the run's"
    else:
        found.left_out["code version"] = f"run by reticent {theirs}, verified by {ours}"


def _stated(run: Run, ledger: LedgerView, statement: Statement) -> dict[str, Any]:
    report = statement.report
    return {
        "run_id": ledger.run_id,
        "private": statement.private,
        "epsilon": report.epsilon if report and statement.private else None,
        "delta": ledger.delta,
        "neighbouring_relation": ledger.relation.value,
        "num_steps": ledger.num_steps,
        "num_lost": ledger.num_lost,
        "accountant": report.accountant if report else None,
        "mechanisms": [{**m.describe(), "num_steps": n} for m, n in ledger.segments()],
        "public": json.loads(json.dumps(dict(ledger.public))),
        "ledger_head": ledger.head,
        "ledger_sha256": sha256_of(run.folder / "ledger.jsonl"),
        "reticent": version("reticent"),
    }
