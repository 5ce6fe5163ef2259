"""Clipping in a plan: to and from JSON.

Room: plan. May import `reticent.clipping` and `reticent.errors`.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any, Final

from reticent.clipping import (
    AdaptiveClipping,
    AutomaticClipping,
    Clipping,
    FlatClipping,
    GroupedClipping,
    PerLayerClipping,
)
from reticent.plan._record import bad_record, check_keys

_KINDS: Final[Mapping[str, type[Clipping]]] = MappingProxyType(
    {
        "flat": FlatClipping,
        "automatic": AutomaticClipping,
        "per-layer": PerLayerClipping,
        "grouped": GroupedClipping,
        "adaptive": AdaptiveClipping,
    }
)


def clipping_record(clipping: Clipping) -> dict[str, Any]:
    """The clipping as a JSON object: its kind, and its settings by their names."""
    kind = next(name for name, cls in _KINDS.items() if type(clipping) is cls)
    settings = asdict(clipping)
    if isinstance(clipping, GroupedClipping):
        settings["max_norms"] = [list(pair) for pair in clipping.max_norms]
    return {"kind": kind, **settings}


def clipping_from(record: object) -> Clipping:
    """Read back what `clipping_record` wrote.

    Raises:
        ConfigError[plan-record]: a key is missing or unknown, or the kind is.
        ConfigError: a value is not one that the clipping may have.
    """
    if not isinstance(record, Mapping) or "kind" not in record:
        raise bad_record("clipping is no object with a kind.")
    cls = _KINDS.get(record["kind"]) if isinstance(record["kind"], str) else None
    if cls is None:
        raise bad_record(f"clipping kind {record['kind']!r} is not known; {', '.join(_KINDS)} are.")
    names = tuple(f.name for f in fields(cls))
    check_keys(record, required=("kind", *names), where="clipping")
    settings = {name: record[name] for name in names}
    if cls is GroupedClipping and isinstance(settings["max_norms"], list):
        settings["max_norms"] = tuple(
            tuple(pair) if isinstance(pair, list) else pair for pair in settings["max_norms"]
        )
    return cls(**settings)
