"""Per-example gradients: the small algebra they form, and the operations that have a rule of their own.

Room: rules (floor 1). May import torch and `reticent.errors`.
"""

from reticent.rules._combine import combine
from reticent.rules._forms import Dense, Form, Method, Outer, Overwrites, overwrites
from reticent.rules._gather import Gather
from reticent.rules._layout import Layout
from reticent.rules._ops import BUILTIN, Meeting, OpRule

__all__ = [
    "BUILTIN",
    "Dense",
    "Form",
    "Gather",
    "Layout",
    "Meeting",
    "Method",
    "OpRule",
    "Outer",
    "Overwrites",
    "combine",
    "overwrites",
]
