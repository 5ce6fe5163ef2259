"""`PrivateSFTTrainer`: TRL's rows, by hand, and the joint's numbers; nothing of `SFTConfig` ignored."""

import dataclasses

import pytest
import torch
from transformers import TrainingArguments

pytest.importorskip("trl")

from datasets import Dataset
from trl.trainer.sft_config import SFTConfig

from reticent.account.ledger import read_run_ledger
from reticent.errors import ConfigError, DataError
from reticent.hf import SFT_FIELDS, PrivacyArguments, PrivateSFTTrainer, PrivateTrainer
from reticent.hf._sft import prepared
from tests.recipes.text.models import character_tokenizer, gpt2
from tests.support.pages import ROOT

pytestmark = [  # of transformers, about settings that TRL makes
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
OURS = {field.name for field in dataclasses.fields(TrainingArguments)}
NAMES = [field.name for field in dataclasses.fields(SFTConfig) if field.name not in OURS]
PRIVACY = {"noise_multiplier": 2.0, "target_delta": 1e-3}
TALKS = [{"prompt": f"row {k}:", "completion": "abc" * (k % 3) + "d"} for k in range(24)]


def config(out, **settings):
    chosen = {
        "output_dir": str(out), "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "max_steps": 2, "learning_rate": 0.05, "use_cpu": True, "disable_tqdm": True, "max_length": 24,
        "bf16": False, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return SFTConfig(**{**chosen, **settings})


def trainer_of(out, rows=TALKS, *, model=None, args=None, **settings):
    return PrivateSFTTrainer(
        model or gpt2(), args or config(out), Dataset.from_list(rows), processing_class=character_tokenizer(),
        privacy=settings.pop("privacy", PrivacyArguments(**PRIVACY)), **settings,
    )  # fmt: skip


def ids_of(text):
    return [ord(c) + 3 for c in text]


def test_every_field_of_the_installed_trl_is_classified_and_no_other():
    assert set(NAMES) == set(SFT_FIELDS), "say what becomes of these fields in reticent.hf.SFT_FIELDS"
    assert all(use.why for use in SFT_FIELDS.values() if use.kind == "refused")
    page = (ROOT / "docs" / "sft.md").read_text(encoding="utf-8")
    missing = [name for name, use in SFT_FIELDS.items() if f"| `{name}` | {use.kind} |" not in page]
    assert not missing, "run: python scripts/trainer_page.py"


@pytest.mark.parametrize("name", [n for n in NAMES if SFT_FIELDS[n].kind == "refused"])
def test_a_refused_field_raises_by_name(tmp_path, name):
    args = config(tmp_path / "run")
    setattr(args, name, 12345.0)  # whatever it is, it is not the default
    with pytest.raises(ConfigError, match=rf"\b{name}: ") as caught:
        trainer_of(tmp_path / "run", args=args)
    assert caught.value.code == "trainer-argument"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_length": None}, "max_length = None"),
        ({"loss_type": "dft"}, "loss_type = 'dft'"),
        ({"max_grad_norm": 0.5}, "max_grad_norm: each row's gradient"),
    ],
)
def test_values_that_cannot_be_private_are_refused(tmp_path, settings, match):
    with pytest.raises(ConfigError, match=match):
        trainer_of(tmp_path / "run", args=config(tmp_path / "run", **settings))


def test_arguments_without_a_place_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"PrivacyArguments\(max_length=7\) beside SFTConfig's 24"):
        trainer_of(tmp_path / "a", privacy=PrivacyArguments(**PRIVACY, max_length=7))
    with pytest.raises(ConfigError, match="data_collator"):
        trainer_of(tmp_path / "b", data_collator=lambda rows: rows)
    with pytest.raises(ConfigError, match="must be an SFTConfig"):
        trainer_of(tmp_path / "c", args=TrainingArguments(output_dir=str(tmp_path / "c"), use_cpu=True))
    with pytest.raises(ConfigError, match="PrivateSFTTrainer"):
        PrivateTrainer(gpt2(), config(tmp_path / "d"), privacy=PrivacyArguments(**PRIVACY))


def test_rows_are_prepared_as_written_by_hand_and_none_is_dropped(tmp_path):
    tokenizer, args = character_tokenizer(), config(tmp_path / "run", max_length=8)
    rows = [{"prompt": "ab", "completion": "cd"}, {"prompt": "123456789", "completion": "x"}]
    short, cut = prepared(Dataset.from_list(rows), args, tokenizer, None)
    assert short == {"input_ids": [*ids_of("abcd"), 1], "labels": [-100, -100, *ids_of("cd"), 1]}
    assert cut["input_ids"] == ids_of("12345678")
    assert cut["labels"] == [-100] * 8  # TRL drops this row, and N would depend on what is in it

    args = config(tmp_path / "run", max_length=4, completion_only_loss=False)
    first, _ = prepared(Dataset.from_list(rows), args, tokenizer, None)
    assert first == {"input_ids": ids_of("abcd"), "labels": ids_of("abcd")}

    texts = Dataset.from_list([{"words": "abc"}])
    (made,) = prepared(texts, config(tmp_path / "run", dataset_text_field="words"), tokenizer, None)
    assert made["input_ids"] == made["labels"] == [*ids_of("abc"), 1]
    (made,) = prepared(texts, config(tmp_path / "run"), tokenizer, lambda row: row["words"].upper())
    assert made["input_ids"] == [*ids_of("ABC"), 1]
    kept = prepared(
        Dataset.from_list([{"input_ids": [5, 6], "labels": [-100, 6], "who": "x"}]), args, tokenizer, None
    )
    assert kept[0] == {"input_ids": [5, 6], "labels": [-100, 6]}


def test_only_what_the_assistant_says_is_learned(tmp_path):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    talk = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    args = config(tmp_path / "run", assistant_only_loss=True)
    (row,) = prepared(Dataset.from_list([{"messages": talk}]), args, tokenizer, None)
    assert row == {"input_ids": ids_of("abcd"), "labels": [-100, -100, *ids_of("cd")]}


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("nothing", [None, []])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_row_without_messages_does_not_decide_how_others_are_read(tmp_path, column, nothing, at):
    talk = [{"role": "user", "content": "ab", "from": "human", "value": "ab"}]
    rows = [{column: talk}, {column: talk}]
    rows[at] = {column: nothing}
    with pytest.raises(ConfigError, match="in some rows and none in others"):
        prepared(Dataset.from_list(rows), config(tmp_path / "run"), character_tokenizer(), None)


def test_a_trl_that_drops_rows_is_refused(tmp_path, monkeypatch):
    from trl.trainer.sft_trainer import SFTTrainer

    made = Dataset.from_list([{"input_ids": [5], "labels": [5]}])
    monkeypatch.setattr(SFTTrainer, "_prepare_dataset", lambda *given: made)
    rows = Dataset.from_list([{"text": "a"}, {"text": "b"}])
    with pytest.raises(ConfigError, match="1 rows of 2"):
        prepared(rows, config(tmp_path / "run"), character_tokenizer(), None)


def test_the_weights_are_those_of_private_trainer_on_rows_made_by_hand(tmp_path):
    privacy = PrivacyArguments(**PRIVACY, noise_seed=5)
    sft = trainer_of(tmp_path / "sft", privacy=privacy)
    sft.train()

    rows = []
    for talk in TALKS:
        ids = [*ids_of(talk["prompt"] + talk["completion"]), 1]
        asked = len(ids_of(talk["prompt"]))
        pad = 24 - len(ids)
        rows.append({
            "input_ids": torch.tensor(ids + [0] * pad),
            "attention_mask": torch.tensor([1] * len(ids) + [0] * pad),
            "labels": torch.tensor([-100] * asked + ids[asked:] + [-100] * pad),
        })  # fmt: skip
    args = TrainingArguments(
        str(tmp_path / "plain"), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=2,
        learning_rate=0.05, use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    plain = PrivateTrainer(
        gpt2(), args, train_dataset=rows, privacy=privacy,
        data_collator=lambda items: {name: torch.stack([item[name] for item in items]) for name in items[0]},
    )  # fmt: skip
    plain.train()
    start = dict(gpt2().named_parameters())
    for (name, ours), theirs in zip(sft.model.named_parameters(), plain.model.parameters(), strict=True):
        assert not torch.equal(ours, start[name])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("removed", [True, False])
def test_users_are_drawn_and_counted(tmp_path, removed):
    rows = [{**talk, "who": f"user {k % 12}"} for k, talk in enumerate(TALKS)]
    privacy = PrivacyArguments(**PRIVACY, user_column="who", rows_per_user=2)
    args = config(tmp_path / "run", remove_unused_columns=removed, eval_strategy="steps", eval_steps=1)
    public = Dataset.from_list(TALKS[:5])  # need no users
    trainer = trainer_of(tmp_path / "run", rows, args=args, privacy=privacy, eval_dataset=public)
    assert list(trainer.train_dataset["who"]) == [row["who"] for row in rows]
    trainer.train()
    ledger = read_run_ledger(tmp_path / "run")
    assert ledger.public["unit"] == "user"
    ((mechanism, steps),) = ledger.segments()
    assert steps == 2 and mechanism.sampling_prob == pytest.approx(8 / 12)


def test_users_are_as_given_where_trl_changes_their_column(tmp_path):
    texts = Dataset.from_list([{"text": "abc"}, {"text": "de"}])  # TRL adds an end of text
    made = prepared(texts, config(tmp_path / "a"), character_tokenizer(), None, user_column="text")
    assert list(made["text"]) == ["abc", "de"] and made[0]["input_ids"] == [*ids_of("abc"), 1]


@pytest.mark.parametrize(
    ("column", "error", "text"),
    [
        ("author", DataError, "no column 'author'.* Its columns: prompt, completion"),
        ("labels", ConfigError, "holds tokens"),
    ],
)
def test_a_column_that_names_no_users_is_refused(tmp_path, column, error, text):
    privacy = PrivacyArguments(**PRIVACY, user_column=column, rows_per_user=2)
    with pytest.raises(error, match=text):
        trainer_of(tmp_path / "run", privacy=privacy)


def test_rows_given_are_not_scored_as_public_ones_later(tmp_path):
    given = Dataset.from_list([{"input_ids": ids_of("abc"), "labels": ids_of("abc")}] * 24)
    trainer = PrivateSFTTrainer(
        gpt2(), config(tmp_path / "run"), given, processing_class=character_tokenizer(),
        privacy=PrivacyArguments(**PRIVACY),
    )  # fmt: skip
    for scored in (given, trainer.train_dataset):
        with pytest.raises(ConfigError, match="holds the train_dataset"):
            trainer.evaluate(scored)


def test_adapters_half_precision_and_evaluation_work_together(tmp_path):
    from peft import LoraConfig

    args = config(tmp_path / "run", bf16=True, eval_strategy="steps", eval_steps=1)
    trainer = trainer_of(
        tmp_path / "run", args=args,
        peft_config=LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
        eval_dataset=Dataset.from_list(TALKS[:5]),
    )  # fmt: skip
    trainer.train()
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trained and all("lora" in name for name in trained)
    assert read_run_ledger(tmp_path / "run").num_steps == 2
    assert (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").count("\n") == 2


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("packing", True, "packing: "),
        ("loss_type", "dft", "loss_type = 'dft'"),
        ("max_length", 8, "max_length=24"),
    ],
)
def test_fields_that_are_set_after_a_trainer_was_made_are_refused_as_before(tmp_path, name, value, text):
    trainer = trainer_of(tmp_path / "run")
    setattr(trainer.args, name, value)
    with pytest.raises(ConfigError, match=text) as caught:
        trainer.train()
    assert caught.value.code == "trainer-argument" and not (tmp_path / "run" / "ledger.jsonl").exists()


def test_tokens_that_the_model_does_not_have_are_refused_before_a_step(tmp_path):
    given = [{"input_ids": [5, 6], "labels": [-100, 6]} for _ in range(24)]
    given[7] = {"input_ids": [5, 300], "labels": [-100, 6]}
    given[9] = {"input_ids": [5, 6], "labels": [-100, 300]}
    with pytest.raises(DataError, match=r"number 7\) have input_ids .*number 9\) have labels") as caught:
        trainer_of(tmp_path / "run", given).train()
    assert caught.value.code == "trainer-rows" and not (tmp_path / "run" / "ledger.jsonl").exists()
