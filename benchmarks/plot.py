"""Draw the results of `benchmarks.clipping --out`: ratios by case and engine, and a table for the docs.

    python -m benchmarks.plot results/*.json --out ratios.png

The table on standard output is markdown: time ratio / memory ratio, non-private training being 1.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines import BASE, ENGINES

PANELS = (
    ("time_ratio", "time of a step / non-private"),
    ("memory_ratio", "memory of a step / non-private"),
)


def load(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Case -> results; a later file of the same case wins."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        results = json.loads(path.read_text())
        if not isinstance(results, dict) or "case" not in results:
            raise ValueError(f"{path.name} is not a result of benchmarks.clipping --out")
        found[results["case"]] = results
    return found


def shown_engines(cases: dict[str, dict[str, Any]]) -> list[str]:
    """Engines with a figure, or a failure of their own, in some case; not the base."""
    return [
        e
        for e in ENGINES
        if e != BASE and any(why(r.get(e)) not in ("quick", "not picked", None) for r in cases.values())
    ]


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
    """Two panels of grouped bars with a line at 1; a cross where an engine fails, a w where it is wrong."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    engines = shown_engines(cases)
    width = 0.86 / max(1, len(engines))
    inches = max(8.0, 1.2 + len(cases) * (0.22 * len(engines) + 0.4))
    figure, panels = plt.subplots(2, 1, figsize=(inches, 9), layout="constrained", sharex=True)
    colours = plt.get_cmap("tab20").colors  # pyright: ignore[reportAttributeAccessIssue]
    for panel, (field, label) in zip(panels, PANELS, strict=True):
        for index, engine in enumerate(engines):
            colour = colours[index % len(colours)]
            panel.bar([], [], color=colour, label=engine)
            for at, results in enumerate(cases.values()):
                x = at - 0.43 + (index + 0.5) * width
                entry = results.get(engine) or {}
                _bar(panel, x, width, entry, why(results.get(engine)), field, colour)
        panel.axhline(1.0, color="black", linewidth=1)
        panel.set(yscale="log", ylabel=label)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(_few)
        panel.tick_params(axis="y", which="minor", labelsize=7)
        panel.grid(axis="y", alpha=0.25, which="both")
        panel.set_xticks(range(len(cases)), list(cases))
        panel.set_xlim(-0.5, len(cases) - 0.5)
        for edge in range(1, len(cases)):
            panel.axvline(edge - 0.5, color="grey", linewidth=0.5, alpha=0.5)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(6, max(1, len(engines)))
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


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
