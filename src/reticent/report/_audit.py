"""An audit beside a run: `audit.json` read, and its curves and pictures drawn into the page.

Room: report. The audit itself needs torch and is made elsewhere; what it found needs neither.
"""

import base64
from pathlib import Path
from typing import ClassVar, Final, Literal

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict

from reticent.errors import ConfigError
from reticent.report._plots import roc_plot, trade_off_plot

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_LARGEST_PICTURE: Final = 8 * 2**20

Point = tuple[float, float]
Measured = tuple[float, float, float, float]


class _Part(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore")


class ProbeFound(_Part):
    """What one probe found."""

    name: str
    passed: bool
    finding: str
    tested: bool = True


class Curves(_Part):
    """True against false positives: what the claim allows, and what was measured with its bounds."""

    about: Literal["one step", "the whole run"]
    claimed: list[Point]
    measured: list[Measured]


class Exposed(_Part):
    """Where canaries that are random tokens stand among others like them."""

    bits_in: float
    bits_out: float
    rank_in: float
    rank_out: float
    num_references: int


class Picture(_Part):
    """A PNG beside `audit.json`, e.g. reconstructions beside their originals."""

    file: str
    caption: str = ""


class Audit(_Part):
    """`audit.json`: what `reticent audit` found."""

    format: Literal[1]
    target: str
    passed: bool
    refuted: bool
    epsilon_claimed: float | None
    epsilon_lower_bound: float | None
    epsilon_attack_at_most: float | None = None
    confidence: float
    delta: float
    method: str
    canaries: str = ""
    num_canaries: int = 0
    num_steps: int = 0
    probes: list[ProbeFound] = []
    exposure: Exposed | None = None
    curve: Curves | None = None
    pictures: list[Picture] = []


def drawn(audit: Audit) -> dict[str, Markup]:
    """The audit's curves as inline SVG, by name; empty if it has none."""
    curve = audit.curve
    if curve is None or not curve.measured:
        return {}
    return {
        "roc": Markup(roc_plot(curve.claimed, curve.measured, about=curve.about)),
        "trade_off": Markup(trade_off_plot(curve.claimed, curve.measured, about=curve.about)),
    }


def pictures(audit: Audit, folder: Path) -> tuple[tuple[str, str], ...]:
    """(data URI, caption) of each picture in the run's folder.

    Raises:
        ConfigError[run-folder]: a picture is not a PNG of at most 8 MiB that lies in the folder itself.
    """
    found = []
    for picture in audit.pictures:
        path = folder / picture.file
        plain = picture.file == path.name and path.is_file() and not path.is_symlink()
        data = path.read_bytes() if plain and path.stat().st_size <= _LARGEST_PICTURE else b""
        if not data.startswith(_PNG):
            raise ConfigError(
                f"audit.json in '{folder}' names the picture '{picture.file}', which is not a PNG of at most "
                "8 MiB in that folder. Restore it, or audit again.",
                code="run-folder",
            )
        found.append((f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}", picture.caption))
    return tuple(found)
