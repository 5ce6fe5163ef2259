"""Draw the results of `benchmarks.clipping --out`: ratios by case and engine, and a table for the docs.

    python -m benchmarks.plot results/*.json --out ratios.png

The table on standard output is markdown: time ratio / memory ratio, non-private training being 1.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.engines import BASE, ENGINES

PANELS = (
    ("time_ratio", "time of a step / non-private"),
    ("memory_ratio", "memory of a step / non-private"),
)

CASES_A_ROW = 5
# Ours in blues, Opacus in oranges, the rest apart.
COLOURS = MappingProxyType(
    {
        "non-private-compiled": "#9a9a9a",
        "reticent-flat": "#08519c",
        "reticent-more-memory": "#08306b",
        "reticent-low-memory": "#3182bd",
        "reticent-per-layer": "#6baed6",
        "reticent-grouped": "#9ecae1",
        "reticent-automatic": "#c6dbef",
        "reticent-compiled": "#17becf",
        "functorch": "#525252",
        "opacus": "#d94801",
        "opacus-ghost": "#fd8d3c",
        "opacus-fast-gradient": "#fdbe85",
        "opake": "#31a354",
        "jax-privacy": "#756bb1",
        "fastdp": "#a63603",
        "private-transformers": "#c51b8a",
    }
)


def load(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Case -> results; of each engine the last that ran. A file may hold several cases under `cases`."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        results = json.loads(path.read_text())
        of_file = results.get("cases", [results]) if isinstance(results, dict) else []
        several = list(of_file.values()) if isinstance(of_file, dict) else of_file
        if not several or any("case" not in one for one in several):
            raise ValueError(f"{path.name} is not a result of benchmarks.clipping --out")
        for one in several:
            kept = found.get(one["case"], {})
            left_out = {e: r for e, r in kept.items() if e in ENGINES and _not_run(one.get(e))}
            found[one["case"]] = {**kept, **one, **left_out}
    return found


def _not_run(entry: dict[str, Any] | None) -> bool:
    return why(entry) in ("quick", "not picked", None)


def shown_engines(cases: dict[str, dict[str, Any]]) -> list[str]:
    """Engines with a figure, or a failure of their own, in some case; not the base."""
    return [e for e in ENGINES if e != BASE and not all(_not_run(r.get(e)) for r in cases.values())]


def why(entry: dict[str, Any] | None) -> str | None:
    """Why there is no figure; "" if there is one, None if the file does not know the engine."""
    return None if entry is None else entry.get("skipped", "")


def markdown(cases: dict[str, dict[str, Any]]) -> str:
    """One row for each case, one column for each engine; below, why engines were skipped."""
    engines = shown_engines(cases)
    lines = ["| case | " + " | ".join(engines) + " |", "|---|" + "---|" * len(engines)]
    notes: dict[str, list[str]] = {}
    for case, results in cases.items():
        cells = []
        for engine in engines:
            reason = why(results.get(engine))
            cells.append(_cell(results.get(engine) or {}, reason))
            if reason and reason not in ("quick", "not picked"):
                notes.setdefault(f"{engine}: {reason}", []).append(case)
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    lines += ["", "Time ratio / memory ratio; non-private training is 1."]
    lines += [f"- {note} ({', '.join(at)})".replace("|", "\\|") for note, at in notes.items()]
    return "\n".join(lines)


def _cell(entry: dict[str, Any], reason: str | None) -> str:
    if reason is None or reason in ("quick", "not picked"):
        return ""
    if reason:
        return "wrong" if reason.startswith("wrong") else "fails"
    memory = entry.get("memory_ratio")
    return f"{entry['time_ratio']:.2f} / " + ("-" if memory is None else f"{memory:.1f}")


def draw(cases: dict[str, dict[str, Any]], path: Path) -> None:
    """Time on the left, memory on the right, a few cases a row; bars grow from the line at 1.

    A cross marks an engine that fails, a w one that is wrong. Engines without any figure are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    engines = [e for e in shown_engines(cases) if any(why(r.get(e)) == "" for r in cases.values())]
    rows = [list(cases)[at : at + CASES_A_ROW] for at in range(0, len(cases), CASES_A_ROW)]
    size = (18, 1.2 + 3.3 * len(rows))
    figure, panels = plt.subplots(len(rows), 2, figsize=size, layout="constrained", squeeze=False)
    for names, pair in zip(rows, panels, strict=True):
        for panel, (field, label) in zip(pair, PANELS, strict=True):
            _panel(panel, {name: cases[name] for name in names}, engines, field, len(rows[0]))
            panel.set_ylabel(label)
    handles = [Patch(color=COLOURS.get(e, "black"), label=e) for e in engines]
    figure.legend(handles=handles, loc="outside upper center", ncols=max(1, min(8, len(engines))))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(
    panel: Any, cases: dict[str, dict[str, Any]], engines: Sequence[str], field: str, slots: int
) -> None:
    width = 0.86 / max(1, len(engines))
    for at, results in enumerate(cases.values()):
        for index, engine in enumerate(engines):
            entry = results.get(engine) or {}
            x = at - 0.43 + (index + 0.5) * width
            _bar(panel, x, width, entry, why(results.get(engine)), field, COLOURS.get(engine, "black"))
    panel.set_yscale("log")
    panel.axhline(1.0, color="black", linewidth=1)
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(_few)
    panel.tick_params(axis="y", which="minor", labelsize=7)
    panel.grid(axis="y", alpha=0.25, which="both")
    panel.set_axisbelow(True)
    panel.set_xticks(range(len(cases)), list(cases))
    panel.set_xlim(-0.5, slots - 0.5)
    for edge in range(1, len(cases)):
        panel.axvline(edge - 0.5, color="grey", linewidth=0.5, alpha=0.5)


def _few(x: float, _: int | None = None) -> str:
    digit = x / 10 ** (len(f"{x:.0f}") - 1) if x >= 1 else round(x * 10, 6)
    return f"{x:g}" if round(digit, 6) in (2, 3, 5) else ""


def _bar(
    panel: Any, x: float, width: float, entry: dict[str, Any], reason: str | None, field: str, colour: Any
) -> None:
    if reason is None or reason in ("quick", "not picked"):
        return
    if reason:
        mark = "w" if reason.startswith("wrong") else "×"
        panel.text(x, 1.02, mark, color=colour, ha="center", va="bottom", fontsize=10, weight="bold")
        return
    value = entry.get(field)
    if value is None:
        return
    panel.bar(x, value - 1.0, width, bottom=1.0, color=colour)
    if field == "time_ratio":
        low, high = entry["time_ratio_range"]
        panel.vlines(x, low, high, color="black", linewidth=0.7)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="PNG to draw")
    args = parser.parse_args(argv)
    try:
        cases = load(args.files)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.out:
        draw(cases, args.out)
    print(markdown(cases))


if __name__ == "__main__":
    main()
