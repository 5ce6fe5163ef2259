"""The model card of a run whose model is kept in the Hugging Face format.

Room: report. The card is made from the ledger, as the page is: who copies only the model's folder still
carries the privacy statement, and what it does not say.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from reticent.data import pretrained_names
from reticent.errors import ConfigError
from reticent.report._figures import round_up
from reticent.report._run import Run, read_run
from reticent.report._statement import (
    Statement,
    clipping_in_words,
    num_available,
    privacy_unit,
    public_num_examples,
    state,
    unit_of,
)
from reticent.report._verify import Verification, verify_read

MODEL_FOLDERS = ("model", "adapter")  # inside a run's folder, each complete for `from_pretrained`
CARD = "README.md"
_UNSOUND = (
    "The files of this run do not agree with each other: these weights may not be those that its ledger "
    "speaks of. `reticent verify RUN` says what is wrong."
)


def write_cards(run: Run, statement: Statement, verification: Verification) -> tuple[Path, ...]:
    """Write a card into each Hugging Face model folder of a run; none if there is none.

    Args:
        run: the run, as `read_run` returned it.
        statement: what its ledger allows to be said.
        verification: what `verify_read` found in it.

    Returns:
        The cards written.

    Guarantee:
        A card states an epsilon only if the run is sound; a card from before is replaced by one that says
        that none can be stated. Every figure is of the ledger or of the plan. Paths and names that the
        settings give for data are left out: a card is published.

    Raises:
        ConfigError[report-not-writable]: a card cannot be written.
    """
    statement, written = _if_sound(statement, verification), []
    for name in MODEL_FOLDERS:
        folder = run.folder / name
        if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
            continue
        written.append(_write(run, statement, folder, kind=name))
    return tuple(written)


def write_card(run: str | Path, folder: Path) -> Path:
    """Write the card of a run's model into a folder that it was saved to, wherever that is.

    Args:
        run: the run's folder.
        folder: of a whole model, or of adapters.

    Raises:
        ConfigError[report-not-writable]: the card cannot be written.
        ReticentError: the run cannot be read, as `read_run`.
    """
    read = read_run(run)
    kind = "adapter" if (folder / "adapter_config.json").is_file() else "model"
    return _write(read, _if_sound(state(read), verify_read(read)), folder, kind=kind)


def _if_sound(statement: Statement, verification: Verification) -> Statement:
    if verification.sound:
        return statement
    return replace(statement, private=False, why_not=_UNSOUND, curve=(), warnings=())


def _write(run: Run, statement: Statement, folder: Path, *, kind: str) -> Path:
    path, beside = folder / CARD, folder / f".{CARD}.part"
    try:
        beside.write_text(card(run, statement, kind=kind), encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise ConfigError(
            f"The model card cannot be written to '{path}': {error.strerror}. Make it writable.",
            code="report-not-writable",
        ) from error
    return path


def card(run: Run, statement: Statement, *, kind: str) -> str:
    """The card's text, Markdown with the front matter that model hubs read.

    Args:
        run: the run.
        statement: what its ledger allows to be said.
        kind: one of `MODEL_FOLDERS`: a whole model, or adapters that need their base model.
    """
    templates = Environment(
        loader=PackageLoader("reticent.report"),
        autoescape=False,  # Markdown; the few free texts go through `_plain`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    report = statement.report
    return templates.get_template("card.md.j2").render(
        adapter=kind == "adapter",
        statement=statement,
        report=report,
        epsilon=round_up(report.epsilon) if report and statement.private else None,
        unit=unit_of(report.neighbouring_relation, privacy_unit(run)) if report else "",
        privacy_unit=_plain(privacy_unit(run)),
        num_examples=public_num_examples(run),
        num_available=num_available(run),
        ledger=run.ledger,
        segments=tuple(run.ledger.segments()) if run.ledger else (),
        clipping=clipping_in_words(run),
        recipe=_plain(run.about.recipe or "none"),
        run_id=_plain(run.about.run_id),
        base=_base(run),
        version=_plain(run.about.environment.get("reticent", "?")),
    )


def _base(run: Run) -> str | None:
    """The pretrained model's public name; None for a folder of the operator's own, or none."""
    name = run.about.config.get("model")
    return name if isinstance(name, str) and name in pretrained_names() else None


def _plain(value: Any) -> str:
    """A short text that Markdown and YAML read as itself."""
    return "".join(c for c in str(value) if c.isalnum() or c in "-_./+ ")[:100]
