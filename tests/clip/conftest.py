"""What tests of the compiled engine share."""

import pytest
import torch

from reticent.clip import _compiled


@pytest.fixture
def same_data() -> None:
    """How often the eager engine runs depends on how many units are clipped."""
    torch.manual_seed(0)


@pytest.fixture
def as_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run graphs without compiling them."""
    monkeypatch.setattr(_compiled, "_compile_graph", lambda module, inputs: module)
