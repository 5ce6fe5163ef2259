"""A second reader of ledgers, which shares no code with the first: to check it.

Room: report. Standard library only, as `docs/read_ledger.py`, which says the same in fewer words.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_SIZES: Final = ("num_", "batch_")
# (scheme, sampling probability, noise multiplier, then (name, value) of each size), steps.
Segment = tuple[tuple[Any, ...], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainLedger:
    """What a ledger says: (mechanism, steps) in order."""

    segments: list[Segment]
    head: str
    reproducible: bool


def spent_by_plain_reading(path: Path) -> PlainLedger:
    """Read a ledger line by line, checking each hash and link.

    Raises:
        ValueError: a line was changed, or does not follow the one before it.
    """
    head, reproducible = "A" * 22, False
    spent: list[Segment] = []
    text = path.read_text(encoding="ascii")
    lines = text.split("\n")
    whole = lines if lines[-1].endswith('"}') else lines[:-1]
    for number, line in enumerate(whole):
        if line.startswith('{"hash":"'):  # a step, which says neither its number nor what it follows
            line = f'{{"seq":{number},"prev":"{head}",{line[1:]}'
        content, separator, digest = line.rpartition(',"hash":"')
        hashed = base64.urlsafe_b64encode(hashlib.sha256(f"{content}}}".encode()).digest()[:16])
        entry = json.loads(content + "}")
        if not separator or digest != f'{hashed.decode().rstrip("=")}"}}':
            raise ValueError(f"line {number + 1} was changed")
        if (entry["seq"], entry["prev"]) != (number, head):
            raise ValueError(f"line {number + 1} does not follow")
        head = digest[:-2]
        match entry.get("kind"):
            case None:
                mechanism, count = spent[-1]
                spent[-1] = (mechanism, count + 1)
            case "segment":
                sizes = [(name, entry[name]) for name in sorted(entry) if name.startswith(_SIZES)]
                spent.append(
                    ((entry["scheme"], entry["sampling_prob"], entry["noise_multiplier"], *sizes), 0)
                )
            case "header" | "reproducible":
                reproducible = reproducible or bool(entry.get("reproducible", True))
    return PlainLedger(segments=[s for s in spent if s[1]], head=head, reproducible=reproducible)
