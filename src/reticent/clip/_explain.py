"""A table of how each parameter is clipped, and why.

Room: clip. May import rich.
"""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from reticent.clip._planner import LayerPlan


@dataclass(frozen=True, slots=True)
class Explanation:
    """The planner's choices, in the order in which the backward met the parameters."""

    layers: tuple[LayerPlan, ...]

    def __str__(self) -> str:
        """A table: layer, form, shapes, method, why, time, memory."""
        if not self.layers:
            return "Nothing is planned before the first sum."
        table = Table(title="How each parameter is clipped")
        for column in ("layer", "form", "shapes", "method", "why"):
            table.add_column(column, overflow="fold")
        table.add_column("ms", justify="right")
        table.add_column("MiB kept", justify="right")
        for layer in self.layers:
            table.add_row(
                layer.name,
                layer.form,
                layer.shapes,
                layer.method,
                layer.why,
                f"{1e3 * layer.seconds:.2f}",
                f"{layer.held / 2**20:.2f}",
            )
        table.add_row(
            f"{len(self.layers)} parameters",
            "",
            "",
            "",
            "",
            f"{1e3 * sum(layer.seconds for layer in self.layers):.2f}",
            f"{sum(layer.held for layer in self.layers) / 2**20:.2f}",
        )
        console = Console(width=160, record=False)
        with console.capture() as captured:
            console.print(table)
        return captured.get()
