"""Every argument of Lightning's Trainer is classified, documented, and refused where it would be ignored."""

import inspect

import pytest

pytest.importorskip("lightning")

from lightning.pytorch import Trainer

from reticent.errors import ConfigError
from reticent.lightning import ARGUMENTS
from reticent.lightning._arguments import check_arguments
from tests.support.pages import ROOT

NAMES = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]


def test_every_argument_of_the_installed_lightning_is_classified_and_no_other():
    assert set(NAMES) - set(ARGUMENTS) == set(), "say what becomes of these in reticent.lightning.ARGUMENTS"
    assert set(ARGUMENTS) - set(NAMES) == set(), "these arguments are gone"
    assert all(use.why for use in ARGUMENTS.values() if use.kind != "supported")


@pytest.mark.parametrize("name", [n for n in NAMES if ARGUMENTS[n].kind == "refused"])
def test_a_refused_argument_raises_by_name(name):
    with pytest.raises(ConfigError, match=rf"\b{name}: ") as caught:
        check_arguments({name: 12345.0})  # whatever it is, it is not the default
    assert caught.value.code == "lightning-argument"


def test_defaults_pass_and_all_problems_are_named_at_once():
    defaults = {
        name: p.default
        for name, p in inspect.signature(Trainer.__init__).parameters.items()
        if name != "self"
    }
    check_arguments({**defaults, "limit_train_batches": 1.0})
    with pytest.raises(ConfigError, match=r"accumulate_grad_batches: .*; gradient_clip_val: "):
        check_arguments({"accumulate_grad_batches": 2, "gradient_clip_val": 1.0})
    with pytest.raises(ConfigError, match="limit_train_batches"):
        check_arguments({"limit_train_batches": 1})  # one batch; the float 1.0 is all of them
    with pytest.raises(ConfigError, match="max_step: it is not known"):
        check_arguments({"max_step": 3})


def test_the_environment_sets_nothing(monkeypatch):
    monkeypatch.setenv("PL_TRAINER_ACCUMULATE_GRAD_BATCHES", "4")
    with pytest.raises(ConfigError, match="PL_TRAINER_ACCUMULATE_GRAD_BATCHES"):
        check_arguments({})


def test_the_page_lists_every_argument_with_its_kind():
    page = (ROOT / "docs" / "lightning.md").read_text(encoding="utf-8")
    missing = [name for name, use in ARGUMENTS.items() if f"| `{name}` | {use.kind} |" not in page]
    assert not missing, "run: python scripts/lightning_page.py"
