"""What a finished run's model answers to prompts, and how the answers score against references.

Room: recipes.text. Imports transformers; reads a run's folder, never its training data.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from reticent.errors import ConfigError

from ._formats import READERS as FORMATS
from ._generate import Decoding, generate
from ._metrics import METRICS, REFUSED, text_metrics
from ._packages import need_transformers
from ._pairs import SourceTargets, bad_format, read_text
from ._save import MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Generated texts, in the order of the prompts.

    Args:
        prompts: what was continued, as a person gave it.
        texts: the continuations.
        scores: metric -> score against the references; empty if none was asked for.
    """

    prompts: tuple[str, ...] = field(repr=False)
    texts: tuple[str, ...] = field(repr=False)
    scores: Mapping[str, float]


def _read_lines(path: str | Path) -> list[SourceTargets]:
    """One prompt a line, no references; empty lines are left out."""
    _, text = read_text(path, "text")
    return [SourceTargets(source=line, targets=()) for line in text.split("\n") if line.strip()]


def _read_jsonl(path: str | Path) -> list[SourceTargets]:
    """Objects with `source`, and with `target` (a text) or `targets` (several) where there are references."""
    path, text = read_text(path, "JSONL")
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        source = row.get("source") if isinstance(row, dict) else None
        found = row.get("targets", row.get("target", [])) if isinstance(row, dict) else None
        targets = [found] if isinstance(found, str) else found
        if not isinstance(source, str) or not isinstance(targets, list):
            raise bad_format(path, "JSONL", f"line {number} is no object with a text `source`")
        if not all(isinstance(target, str) for target in targets):
            raise bad_format(path, "JSONL", f"line {number} has a target that is no text")
        rows.append(SourceTargets(source=source, targets=tuple(targets)))
    return rows


READERS: Final[Mapping[str, Callable[[str | Path], list[SourceTargets]]]] = MappingProxyType(
    {
        "lines": _read_lines,
        "jsonl": _read_jsonl,
        **FORMATS,
    }
)


def read_prompts(path: Path, form: str | None) -> list[SourceTargets]:
    """Prompts, with references where the format has them.

    Args:
        path: the file.
        form: one of `READERS`; None: `jsonl` by the file's ending, else `lines`.

    Raises:
        ConfigError[text-prompt]: the file holds none.
        DataError[text-format]: it is not of its format.
    """
    form = form or ("jsonl" if path.suffix in (".jsonl", ".ndjson") else "lines")
    rows = READERS[form](path)
    if not rows:
        raise ConfigError(f"'{path}' holds no prompt.", code="text-prompt")
    return rows


def load_run_model(run: Path) -> tuple[Any, Any]:
    """The model and tokenizer that a run kept, for generation.

    Raises:
        ConfigError[no-text-model]: the run kept none, or one that does not continue texts.
    """
    folder = run / MODEL
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"'{run}' keeps no model in the Hugging Face format: it has no readable model/config.json. A run "
            "of text-generate that came to its end keeps one.",
            code="no-text-model",
        ) from error
    kinds = config.get("architectures") or []
    if not any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        raise ConfigError(
            f"The model of '{run}' does not continue texts: it is {', '.join(kinds) or 'of unknown kind'}. "
            "Generation needs a run of text-generate.",
            code="no-text-model",
        )
    need_transformers()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return model.eval(), tokenizer


def answer(
    run: Path,
    rows: Sequence[SourceTargets],
    *,
    decoding: Decoding,
    metrics: Sequence[str] = (),
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
) -> Answers:
    """Let a run's model answer each source, and score the answers if asked.

    Sources are put into the form that the run was trained on. Nothing but the weights is read, so the
    privacy of the run is what it was.

    Args:
        run: the run's folder.
        rows: sources, with references if `metrics` are asked for.
        decoding: how to choose continuations.
        metrics: names of `text_metrics`.
        batch_size: prompts at once.
        on_batch: called with the number of prompts done.

    Raises:
        ConfigError[no-text-model]: the run keeps no model that continues texts.
        ConfigError[text-metric]: a metric is unknown or refused.
        ConfigError[text-references]: a metric is asked for and a source has no reference.
        ConfigError[missing-library]: a metric's library, or WordNet, is not there; told first.
        ConfigError[text-decoding], ConfigError[text-prompt]: as `generate`.
    """
    _check_metrics(metrics, rows)
    model, tokenizer = load_run_model(run)
    separator = _separator(run)
    texts = generate(
        model,
        tokenizer,
        [row.source + separator for row in rows],
        decoding=decoding,
        batch_size=batch_size,
        on_batch=on_batch,
    )
    texts = [text.strip() for text in texts] if separator else texts
    scores = text_metrics(texts, [row.targets for row in rows], names=metrics) if metrics else {}
    return Answers(prompts=tuple(row.source for row in rows), texts=tuple(texts), scores=scores)


def _check_metrics(metrics: Sequence[str], rows: Sequence[SourceTargets]) -> None:
    """Refuse before minutes of generation what would be refused after them."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        why = REFUSED.get(unknown[0], f"known are {', '.join(METRICS)}.")
        raise ConfigError(f"The metric '{unknown[0]}' is not computed here: {why}", code="text-metric")
    missing = sum(not row.targets for row in rows)
    if metrics and missing:
        raise ConfigError(
            f"Metrics compare with references, and {missing} of {len(rows)} prompts have none. Give a file "
            "with references, or leave the metrics out.",
            code="text-references",
        )
    if metrics:  # a library or WordNet that is not there is told now
        text_metrics(("a",), (("a",),), names=metrics)


def _separator(run: Path) -> str:
    """What stood between source and target in training; nothing if the run had no sources."""
    try:
        config = json.loads((run / "run.json").read_text(encoding="utf-8")).get("config", {})
        paired = config.get("source_column") or config.get("format", "table") != "table"
    except (OSError, ValueError, AttributeError):
        return ""
    return str(config.get("separator") or "") if paired else ""
