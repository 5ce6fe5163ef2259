"""Pages: about a run, about several side by side, and the plan explorer.

Room: report. May import account, plan, sample, records and errors of ours; never torch, so that a page can be
made years later on a machine that could not run the model.
"""

from reticent.report._card import write_card
from reticent.report._compare import Comparison, compare, write_comparison
from reticent.report._curves import Curve, draw_curves
from reticent.report._explore import Explored, explore, starting_values
from reticent.report._page import Report, round_up, write_report
from reticent.report._run import Run, read_run
from reticent.report._serve import Explorer
from reticent.report._statement import Statement, state
from reticent.report._verify import Verification, verify_run

__all__ = [
    "Comparison",
    "Curve",
    "Explored",
    "Explorer",
    "Report",
    "Run",
    "Statement",
    "Verification",
    "compare",
    "draw_curves",
    "explore",
    "read_run",
    "round_up",
    "starting_values",
    "state",
    "verify_run",
    "write_card",
    "write_comparison",
    "write_report",
]
