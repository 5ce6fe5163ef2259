"""What `reticent plan` prints.

Room: cli.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from reticent.cli._show import rounded_up


def plan_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Everything about a plan, and what it takes."""
    mean = ", on average over the stages" if record["stages"] else ""
    public = "secret" if record["num_examples"] is None else f"{record['num_examples']} (public)"
    if record.get("num_available"):
        public += f", chosen among {record['num_available']} (public too)"
    rows = [
        ("epsilon", f"{rounded_up(record['epsilon'])} by {record['accountant']}"),
        ("epsilon by RDP", rounded_up(record["epsilon_rdp"])),
        ("epsilon by PLD", rounded_up(record["epsilon_pld"])),
        ("delta", f"{record['delta']:g}"),
        ("neighbouring relation", record["neighbouring_relation"]),
        ("noise multiplier", f"{record['noise_multiplier']:.6g}"),
        ("steps", str(record["num_steps"])),
        ("sampler", record["sampler"] + (_probability(record) if not record["stages"] else ", in stages")),
        *_stage_rows(record["stages"]),
        (f"{record.get('unit', 'example')}s", public),
        *_clipping_rows(record),
        ("noise in the clipped sum", f"standard deviation {_each(record['noise_std'])} in each coordinate"),
    ]
    if record["expected_batch_size"] is not None:
        rows += [
            ("expected batch size B", f"{record['expected_batch_size']:.6g}" + mean),
            ("noise in the mean gradient", f"sigma C / B = {_each(record['noise_std_of_mean'], digits=4)}"),
            (
                "cost",
                f"{record['example_gradients']:.6g} example gradients ({record['epochs']:.4g} epochs), "
                f"{record['updates']} updates",
            ),
        ]
    if "memory" in record:
        rows.insert(0, ("recipe", record["recipe"]))
        rows += [("memory of a step", size(record["memory"]["total"]))]
        rows += [
            (f"  {name.replace('_', ' ')}", size(taken))
            for name, taken in record["memory"].items()
            if name != "total"
        ]
    if "at_scale" in record:
        rows += _scale_rows(record["at_scale"])
    rows += [(f"why {name}", reason) for name, reason in record.get("chosen", {}).items()]
    return rows + [("note", note) for note in record["notes"]]


def _probability(record: Mapping[str, Any]) -> str:
    return f", probability {record['sampling_prob']:.6g} a step"


def _stage_rows(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """A line for each stage: which steps, how large a batch, how much noise."""
    rows, start = [], 0
    for stage in stages:
        end = start + stage["num_steps"]
        rows.append(
            (
                f"  steps {start} to {end - 1}",
                f"expected batch size {stage['expected_batch_size']:.6g}, probability "
                f"{stage['sampling_prob']:.6g}, noise multiplier {stage['noise_multiplier']:.6g}",
            )
        )
        start = end
    return rows


def _each(value: Any, *, digits: int = 6) -> str:
    """A number; of stages, each of theirs, and one if they are the same."""
    values = dict.fromkeys(value if isinstance(value, list) else [value])
    return ", then ".join(f"{v:.{digits}g}" for v in values)


def _clipping_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    settings = dict(record["clipping"])
    kind = settings.pop("kind")
    norm = f"{record['max_norm']:g}"
    if kind == "flat":
        return [("clipping norm C", norm)]
    shown = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    if kind != "adaptive":
        return [("clipping", f"{kind}: {shown}"), ("bound of the clipped sum C", norm)]
    return [
        ("clipping", f"{kind}: {shown}"),
        ("bound of the clipped sum C", f"{norm} in the first step; later it follows the quantile"),
        (
            "noise multiplier's shares",
            f"{_each(record['gradient_noise_multiplier'])} on the gradient, "
            f"{_each(record['count_noise_multiplier'])} on the count",
        ),
    ]


def _scale_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run takes on each rank, and altogether."""
    hardware = found["hardware"]
    total, usable = found["memory"]["total"], hardware["memory"]
    fits = "fits" if found["fits"] else "does NOT fit"
    copies = f", {found['num_replicas']} copies" if found["num_replicas"] > 1 else ""
    way = found["parallel"] + copies
    rows = [
        ("hardware", f"{found['ranks']} x {hardware['name']} ({hardware['source']}), {way}"),
        ("parameters", f"{found['num_parameters']:,}, of which {found['num_trained']:,} are trained"),
        ("memory of a rank", f"{size(total)} of {size(usable)}: {fits}"),
        *((f"  {name.replace('_', ' ')}", size(n)) for name, n in found["memory"].items() if name != "total"),
        (
            "time of a step",
            f"{found['step_seconds']:.3g} s: compute {found['compute_seconds']:.3g}, noise "
            f"{found['noise_seconds']:.3g}, between ranks {found['communication_seconds']:.3g}",
        ),
        ("physical batches", f"{found['chunks']} of {found['physical_batch_size']} on each rank"),
        ("device hours", f"{found['device_hours']:.4g}"),
    ]
    if hardware["off_by"] is not None:
        missed = f"a reference model that it left out was missed by up to {hardware['off_by']:.2g} times"
        rows.append(("error of the fit", missed))
    if hardware["note"]:
        rows.append(("about the hardware", hardware["note"]))
    return rows


def size(num_bytes: int) -> str:
    """Bytes as people read them."""
    return f"{num_bytes / 2**30:.3g} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.4g} MiB"
