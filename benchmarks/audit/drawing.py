"""The benchmark's figures: ROC on log scales, success beside its bound, pictures side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ATTACKS = {"lira_online": "LiRA on-line", "lira_offline": "LiRA off-line", "loss_threshold": "loss threshold"}
COLOURS = {"lira_online": "#08519c", "lira_offline": "#6baed6", "loss_threshold": "#d94801"}


def curves(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One panel a setting: true over false positives, and the most that epsilon allows."""
    figure, axes = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.5), sharey=True, squeeze=False)
    for axis, (name, result) in zip(axes[0], found.items(), strict=True):
        for attack, label in ATTACKS.items():
            x, y = np.array(result["attacks"][attack]["curve"]).T
            axis.plot(np.maximum(x, 1e-4), np.maximum(y, 1e-4), color=COLOURS[attack], label=label)
        axis.plot([1e-4, 1], [1e-4, 1], color="#999999", linewidth=0.8, label="guessing")
        if "trade_off" in result:
            alpha, beta = np.array(result["trade_off"]).T
            keep = alpha >= 1e-4
            axis.plot(alpha[keep], 1 - beta[keep], "k--", label="the most that ε allows")
        axis.set(xscale="log", yscale="log", xlim=(1e-4, 1), ylim=(1e-4, 1.05), title=name)
        axis.set_xlabel("false positive rate")
    axes[0][0].set_ylabel("true positive rate")
    axes[0][-1].legend(fontsize=7, loc="lower right")
    _save(figure, path)


def success(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Share of targets guessed right among candidates over epsilon, with its bound and the prior."""
    sizes = [guess["candidates"] for guess in runs[0]["guesses"]]
    figure, axes = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 3.4), squeeze=False)
    for panel, (axis, size) in enumerate(zip(axes[0], sizes, strict=True)):
        for model, colour in (("softmax", "#08519c"), ("hidden", "#d94801")):
            points = sorted(
                (run["epsilon"], *(run["guesses"][panel][k] for k in ("success", "lower_95", "upper_95")))
                for run in runs
                if run["model"] == model
            )
            if points:
                x, y, low, high = np.array(points).T
                axis.errorbar(
                    x, y, [y - low, high - y], fmt="o", color=colour, capsize=3, label=f"{model}, measured"
                )
        bound = sorted({(run["epsilon"], run["guesses"][panel]["bound"]) for run in runs})
        axis.plot(*np.array(bound).T, "k--", label="the most that ε allows")
        axis.axhline(1 / size, color="#999999", linewidth=0.8, label="prior")
        axis.set(xscale="log", title=f"one of {size} candidates", xlabel="ε", ylim=(-0.02, 1.05))
    axes[0][0].set_ylabel("share of targets guessed right")
    axes[0][0].legend(fontsize=7)
    _save(figure, path)


def side_by_side(rows: Mapping[str, Any], path: Path, *, shape: tuple[int, int] = (28, 28)) -> None:
    """A row of pictures for each name; values are cut to 0 to 1."""
    num = min(len(pictures) for pictures in rows.values())
    figure, axes = plt.subplots(
        len(rows), num, figsize=(0.9 * num + 1.6, 0.95 * len(rows)), squeeze=False,
        gridspec_kw={"wspace": 0.06, "hspace": 0.06},
    )  # fmt: skip
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=False):
            axis.imshow(np.asarray(picture).reshape(shape), cmap="gray", vmin=0.0, vmax=1.0)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
