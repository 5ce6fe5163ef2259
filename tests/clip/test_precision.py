"""Norms and sums in full precision, however torch was told to multiply with less.

torch has two sets of switches, which must not contradict each other; each test sets them in a process of its
own, and what is left behind is what was there.
"""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from reticent.clip import ClipEngine, CompiledEngine
from reticent.clip._precision import full_float32, precisions
from reticent.rules._linear import LinearMeeting

WAYS = {
    "nothing": "",
    "the older switch of products": "b.cuda.matmul.allow_tf32 = True",
    "the older switch of all": "torch.set_float32_matmul_precision('medium')",
    "the older switch of convolutions": "b.cudnn.allow_tf32 = False",
    "the newer switch of products": "b.cuda.matmul.fp32_precision = 'tf32'",
    "the newer switch of convolutions": "b.cudnn.fp32_precision = 'tf32'",
    "the newer switch of all": "b.fp32_precision = 'tf32'",
    "the newer switch of CPUs": "b.mkldnn.matmul.fp32_precision = 'bf16'",
}
SCRIPT = """
import json, sys, torch
from reticent.clip._precision import full_float32, precisions

b = torch.backends

def switches():
    found = []
    for read in (
        lambda: b.cuda.matmul.allow_tf32, lambda: b.cudnn.allow_tf32, torch.get_float32_matmul_precision,
        lambda: b.fp32_precision, lambda: b.cudnn.fp32_precision, lambda: precisions("cpu"),
        lambda: precisions("cuda"),
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append("torch refuses to say")
    return found

exec(sys.argv[1])
before, inside = switches(), {}
for kind in ("cpu", "cuda"):
    with full_float32(torch.device(kind)):
        inside[kind] = precisions(kind), b.cuda.matmul.allow_tf32 if kind == "cuda" else None
print(json.dumps([before, inside, switches()]))
"""


def seen_by(script, way):
    """(switches before, precisions inside, switches after) in a process of its own."""
    command = [sys.executable, "-c", script, WAYS[way]]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("way", WAYS)
def test_inside_it_is_full_and_afterwards_as_before(way):
    before, inside, after = seen_by(SCRIPT, way)
    assert after == before
    for kind, (found, _) in inside.items():
        assert set(found) <= {"none", "ieee"}, kind
    assert inside["cuda"][1] is False  # torch's older switch agrees: it refuses to multiply otherwise


def test_the_test_above_would_see_reduced_precision():
    without = SCRIPT.replace("with full_float32(torch.device(kind)):", "if True:")
    _, inside, _ = seen_by(without, "nothing")
    assert "tf32" in inside["cuda"][0]  # torch's default for convolutions


@pytest.fixture
def reduced_on_cpus():
    was = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    yield
    torch.backends.mkldnn.matmul.fp32_precision = was


def test_what_a_visitor_computes_runs_in_full_precision(reduced_on_cpus, monkeypatch):
    seen, plain = [], LinearMeeting.forms
    monkeypatch.setattr(LinearMeeting, "forms", lambda *args: seen.append(precisions("cpu")) or plain(*args))
    model = nn.Linear(3, 3)
    ClipEngine(model, max_norm=1.0).clipped_sum(lambda x: model(x).sum(1), torch.randn(4, 3))
    assert seen and all(set(found) <= {"none", "ieee"} for found in seen)
    assert precisions("cpu")[0] == "bf16"
    with full_float32(torch.device("cpu")):
        assert precisions("cpu")[0] == "ieee"


def test_the_newer_switches_are_part_of_what_a_compiled_program_holds_for(reduced_on_cpus, monkeypatch):
    from reticent.clip import _compiled

    monkeypatch.setattr(_compiled, "_compile_graph", lambda module, inputs: module)
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # of which the older getter refuses to tell
    try:
        model = nn.Linear(3, 3)
        engine = CompiledEngine(model, max_norm=1.0, physical_batch_size=4)
        assert engine.clipped_sum(lambda x: model(x).sum(1), torch.randn(4, 3)).norms.shape == (4,)
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
