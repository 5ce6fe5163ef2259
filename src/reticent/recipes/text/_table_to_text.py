"""Readers of the public files of E2E (CSV), DART (JSON) and WebNLG (XML).

Room: recipes.text. Imports defusedxml (when WebNLG is read) and `reticent.errors`.

Tables are written out as `key : value | key : value`, and triples as `subject : relation : object | ...`,
as in prefix tuning [1] and the private fine-tuning that followed it [2].

Sources:
    [1] Li and Liang 2021, arXiv:2101.00190
    [2] Li, Tramèr, Liang and Hashimoto 2022, arXiv:2110.05679
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ._packages import missing
from ._pairs import SourceTargets, bad_format, filled, grouped, json_of, read_text

_SLOT = re.compile(r"\s*(?P<name>[^\[\],]+)\[(?P<value>[^\[\]]*)\]\s*(?:,|$)")


# ---- E2E -----------------------------------------------------------------------------------------


def read_e2e(path: str | Path) -> list[SourceTargets]:
    """Read an E2E CSV: columns `mr` (`name[The Vaults], food[Thai]`) and `ref`.

    Args:
        path: `trainset.csv`, `devset.csv` or `testset_w_refs.csv`.

    Returns:
        One entry for each meaning representation, with all its references, in the order of the file.

    Raises:
        DataError[text-format]: a column is missing, a row is torn, or a representation has no slots.
    """
    return grouped((row.source, row.targets[0]) for row in e2e_rows(path))


def e2e_rows(path: str | Path) -> list[SourceTargets]:
    """The rows of an E2E CSV, one reference each, in the order of the file.

    Raises:
        DataError[text-format]: as `read_e2e`.
    """
    kind = "E2E"
    path, text = read_text(path, kind)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[SourceTargets] = []
    try:
        columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
        if not {"mr", "ref"} <= set(columns):
            raise bad_format(path, kind, "its first line does not name columns mr and ref")
        for row in reader:
            source, target = row[columns["mr"]], row[columns["ref"]]
            if not filled((source, target)):
                raise bad_format(path, kind, f"line {reader.line_num} has no mr or no ref")
            table = _e2e_table(source, path, reader.line_num)
            rows.append(SourceTargets(source=table, targets=(target.strip(),)))
    except csv.Error as error:
        raise bad_format(path, kind, f"after line {reader.line_num}: {error}") from error
    return _some(rows, path, kind)


def _e2e_table(meaning: str, path: Path, line: int) -> str:
    """`name[The Vaults], food[Thai]` as `name : The Vaults | food : Thai`."""
    slots, at = [], 0
    while at < len(meaning.rstrip()):
        match = _SLOT.match(meaning, at)
        if match is None:
            raise bad_format(path, "E2E", f"the mr of line {line} is not a list of name[value]")
        slots.append(f"{match['name'].strip()} : {match['value'].strip()}")
        at = match.end()
    return " | ".join(slots)


# ---- DART ----------------------------------------------------------------------------------------


def read_dart(path: str | Path) -> list[SourceTargets]:
    """Read a DART JSON: a list of `{"tripleset": [[s, p, o], ...], "annotations": [{"text": ...}]}`.

    Args:
        path: e.g. `dart-v1.1.1-full-train.json`.

    Returns:
        One entry for each tripleset, with its annotations as references.

    Raises:
        DataError[text-format]: not JSON, or an entry lacks triples or texts.
    """
    kind = "DART"
    path, text = read_text(path, kind)
    entries = json_of(text, path, kind)
    if not isinstance(entries, list):
        raise bad_format(path, kind, "its top level is not a list")
    examples = []
    for number, entry in enumerate(entries, start=1):
        triples = entry.get("tripleset") if isinstance(entry, dict) else None
        notes = entry.get("annotations") if isinstance(entry, dict) else None
        listed = notes if isinstance(notes, list) else []
        texts = [n.get("text") if isinstance(n, dict) else None for n in listed]
        if not _are_triples(triples) or not texts or not filled(texts):
            raise bad_format(path, kind, f"entry {number} lacks a tripleset or annotations with texts")
        targets = tuple(str(text).strip() for text in texts)
        examples.append(SourceTargets(source=_triples(triples or ()), targets=targets))
    return _some(examples, path, kind)


def _are_triples(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(triple, list) and len(triple) == 3 and filled(triple) for triple in value)
    )


def _triples(triples: Iterable[Sequence[str]]) -> str:
    return " | ".join(" : ".join(part.strip() for part in triple) for triple in triples)


# ---- WebNLG --------------------------------------------------------------------------------------


def read_webnlg(
    path: str | Path, *, language: str = "en", keep: Sequence[str] = ("", "good")
) -> list[SourceTargets]:
    """Read a WebNLG XML (challenges of 2017 and 2020), hardened against hostile XML.

    Args:
        path: one XML file of the benchmark.
        language: texts marked with another `lang` are left out; unmarked ones are English.
        keep: which `comment` attributes of a text are kept; the release marks doubtful ones `bad` or
            `toFix`, and most others `good` or not at all.

    Returns:
        One entry for each `entry` that keeps at least one text, from its modified triples.

    Guarantee:
        No entity is expanded and nothing outside the file is read: a file that declares entities or a
        document type is refused.

    Raises:
        ConfigError[missing-library]: defusedxml is not installed.
        DataError[text-format]: not XML, declares entities, or an entry lacks triples.
    """
    kind = "WebNLG"
    path, text = read_text(path, kind)
    root = _parse_xml(text, path, kind)
    examples = []
    for number, entry in enumerate(root.iter("entry"), start=1):
        found = entry.find("modifiedtripleset")
        triples = [
            (t.text or "").split(" | ") for t in (found.findall("mtriple") if found is not None else ())
        ]
        if not _are_triples(triples):
            raise bad_format(
                path, kind, f"entry {number} lacks triples of the form 'subject | relation | object'"
            )
        texts = [
            (lex.findtext("text") or lex.text or "").strip()
            for lex in entry.findall("lex")
            if (lex.get("lang") or "en") == language and (lex.get("comment") or "") in keep
        ]
        targets = tuple(text for text in texts if text)
        if targets:
            examples.append(SourceTargets(source=_triples(triples), targets=targets))
    return _some(examples, path, kind)


def _parse_xml(text: str, path: Path, kind: str):
    try:
        from defusedxml import ElementTree
        from defusedxml.common import DefusedXmlException
    except ImportError as error:
        raise missing("defusedxml", "Reading WebNLG", extra="text-metrics") from error
    try:
        return ElementTree.fromstring(text.encode(), forbid_dtd=True)
    except DefusedXmlException as error:
        raise bad_format(path, kind, f"it declares what is not read ({type(error).__name__})") from error
    except ElementTree.ParseError as error:
        raise bad_format(path, kind, f"it is not XML ({error})") from error


def _some(examples: list[SourceTargets], path: Path, kind: str) -> list[SourceTargets]:
    if not examples:
        raise bad_format(path, kind, "it holds no example")
    return examples
