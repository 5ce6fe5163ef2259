"""How fast a device is, as a file says it.

Room: cost. May import `reticent.errors`.
"""

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reticent.errors import ConfigError

_Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Hardware(BaseModel):
    """Rates of one rank's device, and of the connection between ranks.

    A physical batch takes `seconds_per_operation` for each floating-point operation, plus `seconds_per_byte`
    for each byte that its forward pass makes, plus `seconds_per_call` for each call of a torch operation.

    Args:
        name: of the device.
        source: "measured" by `reticent hardware`, or "assumed", in which case `note` says why these numbers.
        seconds_per_operation, seconds_per_byte, seconds_per_call: see above; clipping is in them.
        noise_seconds: for each coordinate that noise is added to.
        memory_factor: peak memory of a private physical batch over that of the forward pass alone.
        memory: bytes that a rank can use.
        bandwidth: bytes a second between ranks; None if nobody measured or assumed it.
        off_by: the largest factor by which a reference's time was missed when the fit left it out; None if
            nothing was fitted.
        versions: of what was measured with.
        note: anything a reader should know.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(max_length=200)]
    source: Literal["measured", "assumed"]
    seconds_per_operation: _Rate
    seconds_per_byte: _Rate
    seconds_per_call: _Rate
    noise_seconds: _Rate
    memory_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    memory: Annotated[int, Field(gt=0)]
    bandwidth: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    off_by: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    versions: dict[str, str] = {}
    note: str = ""


def read_hardware(path: Path | str) -> Hardware:
    """Read a device's rates.

    Raises:
        ConfigError[hardware]: no such file, or it is none of `write_hardware`'s kind.
    """
    try:
        return Hardware.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise _bad(path, error.strerror or "cannot be read") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise _bad(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _bad(path, "is no JSON object") from error


def write_hardware(hardware: Hardware, path: Path | str) -> None:
    """Write a device's rates, as JSON."""
    Path(path).write_text(hardware.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _bad(path: Path | str, why: str) -> ConfigError:
    return ConfigError(
        f"'{path}' says nothing about hardware that could be used ({why}). Make it on the device by: "
        "reticent hardware --out FILE",
        code="hardware",
    )
