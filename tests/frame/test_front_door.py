"""The front door: which names it has, and that opening it costs nothing."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import reticent

ROOT = Path(__file__).resolve().parents[2]

NAMES = {
    "Budget", "Plan", "PoissonSampler", "FullBatchSampler", "FlatClipping", "PrivateStep", "train",
    "AutomaticClipping", "PerLayerClipping", "GroupedClipping", "AdaptiveClipping",
    "clipped_sum", "ClipEngine", "fix", "Ledger", "read_ledger", "epsilon",
    "ReticentError", "ConfigError", "AccountingError", "UnsupportedModel", "CoupledExamples", "StepError",
    "BudgetExhausted", "LedgerError", "CheckpointError", "DataError", "AuditError", "__version__",
}  # fmt: skip

HEAVY = {"torch", "numpy", "scipy", "sklearn", "matplotlib", "dp_accounting", "transformers", "jinja2"}


def modules_after(statement: str) -> set[str]:
    """Top-level modules a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint('\\n'.join(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(shown.stdout.split("\n"))


def test_the_front_door_has_exactly_these_names():
    assert set(reticent.__all__) == NAMES
    assert set(dir(reticent)) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_of_the_front_door_opens(name):
    assert getattr(reticent, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'epsilom'"):
        _ = reticent.epsilom


def test_importing_reticent_loads_nothing_heavy():
    loaded = modules_after("import reticent")
    assert "reticent" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", ["Budget", "Plan", "PoissonSampler", "Ledger", "epsilon", "ReticentError"])
def test_planning_and_accounting_never_load_torch(name):
    assert "torch" not in modules_after(f"import reticent; reticent.{name}")


@pytest.mark.parametrize("room", ["account", "plan", "records", "report", "sample", "cli"])
def test_torch_free_rooms_load_without_torch(room):
    assert "torch" not in modules_after(f"import reticent.{room}")


def test_train_is_callable_whichever_way_it_was_reached():
    importlib.import_module("reticent.train")
    assert callable(reticent.train)
    assert reticent.train.PrivateStep is reticent.PrivateStep


def test_the_version_is_the_one_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert reticent.__version__ == project["version"]


def test_rooms_are_found_by_name_in_a_fresh_interpreter():
    script = (
        "import sys, reticent as rt\n"
        "assert 'torch' not in sys.modules\n"
        "assert issubclass(rt.errors.ConfigError, Exception) and rt.ConfigError is rt.errors.ConfigError\n"
        "assert rt.plan.Plan is rt.Plan and 'torch' not in sys.modules\n"
        "assert callable(rt.train) and rt.PrivateStep is rt.train.PrivateStep\n"
        "try:\n    rt.nothing\nexcept AttributeError:\n    print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "done", done.stderr
