"""Figures of a privacy statement, rounded so that none flatters.

Room: report. Standard library only.
"""

import math


def round_up(value: float, *, digits: int = 4) -> str:
    """A bound with `digits` significant digits, never below its value: 2.99962 becomes "3"."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "∞"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    scaled = value * 10.0**places
    whole = round(scaled) if math.isclose(scaled, round(scaled), rel_tol=1e-12) else math.ceil(scaled)
    text = f"{whole / 10.0**places:.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if places > 0 else text


def percent_up(share: float) -> str:
    """A bound on a share, never below its value: 0.95261 becomes "95.3 %", and 0.99967 "99.97 %"."""
    for places in (1, 2, 3, 4):
        shown = math.ceil(round(100.0 * share * 10.0**places, 6)) / 10.0**places
        if shown < 100.0:
            return f"{shown:.{places}f} %"
    return "100 %"
