"""Every field of TrainingArguments is classified, documented, and refused where it would be ignored."""

import dataclasses
from pathlib import Path

import pytest
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from reticent.errors import ConfigError
from reticent.hf import FIELDS
from reticent.hf._fields import check_arguments, chosen

NAMES = [field.name for field in dataclasses.fields(TrainingArguments)]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "trainer.md"


def made(tmp_path, **settings):
    return TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, **settings)


def test_every_field_of_the_installed_transformers_is_classified_and_no_other():
    assert set(NAMES) - set(FIELDS) == set(), "say what becomes of these fields in reticent.hf.FIELDS"
    assert set(FIELDS) - set(NAMES) == set(), "these fields are gone"
    assert all(use.why for use in FIELDS.values() if use.kind == "refused")


@pytest.mark.parametrize("name", [n for n in NAMES if FIELDS[n].kind == "refused"])
def test_a_refused_field_raises_by_name(tmp_path, name):
    args = made(tmp_path)
    setattr(args, name, 12345.0)  # whatever it is, it is not the default
    with pytest.raises(ConfigError, match=rf"\b{name}: ") as caught:
        check_arguments(args)
    assert caught.value.code == "trainer-argument"


def test_all_problems_are_named_at_once(tmp_path):
    args = made(tmp_path, data_seed=1, neftune_noise_alpha=5.0, optim="adafactor", save_total_limit=1)
    with pytest.raises(ConfigError) as caught:
        check_arguments(args)
    message = str(caught.value)
    assert all(name in message for name in ("data_seed", "neftune_noise_alpha", "optim", "save_total_limit"))


def test_harmless_and_default_values_pass(tmp_path):
    check_arguments(made(tmp_path))
    check_arguments(
        made(tmp_path, do_train=True, dataloader_num_workers=2, ddp_timeout=60, max_grad_norm=0.0)
    )


def test_a_field_of_a_subclass_is_refused_unless_it_has_its_default(tmp_path):
    where = {"output_dir": str(tmp_path / "run"), "use_cpu": True}
    check_arguments(Seq2SeqTrainingArguments(**where))
    with pytest.raises(ConfigError, match="predict_with_generate: it is not known"):
        check_arguments(Seq2SeqTrainingArguments(**where, predict_with_generate=True))


def test_the_description_keeps_what_was_chosen_and_no_path(tmp_path):
    kept = chosen(made(tmp_path, learning_rate=0.5, lr_scheduler_type="cosine", do_train=True))
    assert kept == {"learning_rate": 0.5, "lr_scheduler_type": "SchedulerType.COSINE"} or kept == {
        "learning_rate": 0.5, "lr_scheduler_type": "cosine",
    }  # fmt: skip


def test_the_page_lists_every_field_with_its_kind():
    page = PAGE.read_text(encoding="utf-8")
    missing = [name for name, use in FIELDS.items() if f"| `{name}` | {use.kind} |" not in page]
    assert not missing, "run: python scripts/trainer_page.py"
