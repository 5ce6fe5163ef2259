"""`PrivateTrainer` on tiny random models: the joint's own numbers, the ledger's epsilon, nothing ignored."""

import copy
import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

from reticent.account.ledger import read_run_ledger
from reticent.errors import ConfigError, DataError, StepError
from reticent.hf import PrivacyArguments, PrivateTrainer, per_example_loss
from reticent.train import TrainSettings, train
from tests.recipes.text.models import byte_tokenizer, gpt2

PRIVACY = {"noise_multiplier": 2.0, "target_delta": 1e-3, "max_length": 32}
TEXTS = [f"row {k}: {'abc' * (k % 4)}" for k in range(24)]


def arguments(out, **settings):
    chosen = {
        "output_dir": str(out),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "learning_rate": 0.05,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    return TrainingArguments(**{**chosen, **settings})


def rows(texts=TEXTS):
    tokenizer = byte_tokenizer()
    return [dict(tokenizer(text)) for text in texts]


def trainer_of(out, *, privacy=None, kind=PrivateTrainer, args=None, **settings):
    tokenizer = byte_tokenizer()
    return kind(
        model=settings.pop("model", None) or gpt2(),
        args=args or arguments(out),
        train_dataset=settings.pop("train_dataset", rows()),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        privacy=privacy or PrivacyArguments(**PRIVACY),
        **settings,
    )


def test_the_weights_are_those_of_the_joint(tmp_path):
    privacy = PrivacyArguments(**PRIVACY, noise_seed=5)
    args = arguments(tmp_path / "hf", adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-3)
    trainer = trainer_of(tmp_path / "hf", privacy=privacy, args=args)
    trainer.train()

    made = byte_tokenizer()(TEXTS, padding="max_length", max_length=32, return_tensors="pt")
    data = dict(made) | {"labels": made["input_ids"].masked_fill(made["input_ids"] == 0, -100)}
    model = gpt2().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.0)
    train(
        model,
        optimizer,
        plan=privacy.plan(num_units=24, expected_batch_size=8.0, num_steps=3),
        dataset=data,
        loss_per_example=per_example_loss(model),
        out=tmp_path / "joint",
        settings=TrainSettings(seed=3, lr_decay_steps=3),
        physical_batch_size=4,
        noise_seed=5,
    )
    for (name, ours), theirs in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_epsilon_is_the_ledgers_and_a_report_is_written(tmp_path):
    asked = PrivacyArguments(target_epsilon=8.0, target_delta=1e-3, max_length=32)
    out = trainer_of(tmp_path / "run", privacy=asked).train()
    ledger = read_run_ledger(tmp_path / "run")
    assert ledger.num_steps == out.global_step == 3 and not ledger.reproducible
    assert 0 < out.metrics["epsilon"] <= 8.0 and out.metrics["delta"] == 1e-3
    assert math.isnan(out.training_loss)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "differential" in page.lower()
    assert not (tmp_path / "run" / "not-private.jsonl").exists()


class Recorder(TrainerCallback):
    """Notes every event; stops after `stop_after` steps."""

    def __init__(self, stop_after=None):
        self.events, self.logs, self.stop_after = [], [], stop_after

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append("begin")

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(f"step {state.global_step}")
        if state.global_step == self.stop_after:
            control.should_training_stop = True
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.events.append("evaluate")

    def on_save(self, args, state, control, **kwargs):
        self.events.append("save")

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append("end")


def test_callbacks_logs_evaluation_and_saving_happen_as_in_trainer(tmp_path):
    args = arguments(
        tmp_path / "run", logging_steps=1, eval_strategy="steps", eval_steps=2, save_strategy="steps",
        save_steps=2, warmup_steps=1, lr_scheduler_type="cosine",
    )  # fmt: skip
    recorder = Recorder()
    trainer = trainer_of(
        tmp_path / "run", args=args, eval_dataset=rows(TEXTS[:5]), callbacks=[recorder],
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions[0].argmax(-1) == 0))},
    )  # fmt: skip
    trainer.train()
    assert recorder.events == [
        "begin", "step 1", "step 2", "evaluate", "save", "step 3", "evaluate", "save", "end",
    ]  # fmt: skip
    steps = [log for log in recorder.logs if "learning_rate" in log]
    assert [log["learning_rate"] for log in steps] == pytest.approx([0.0, 0.05, 0.025])
    assert steps[0]["epsilon"] < steps[2]["epsilon"]
    assert not any("loss" in log or "grad_norm" in log for log in steps), "the loss is of private rows"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and "accuracy" in lines[0]


@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end"])
def test_an_epoch_that_shall_end_early_is_refused_not_ignored(tmp_path, event):
    def stop(self, args, state, control, **kwargs):
        control.should_epoch_stop = True

    callback = type("Short", (TrainerCallback,), {event: stop})()
    with pytest.raises(ConfigError, match=f"should_epoch_stop in {event}") as caught:
        trainer_of(tmp_path / "run", callbacks=[callback]).train()
    assert caught.value.code == "trainer-argument"
    kept = tmp_path / "run" / "ledger.jsonl"
    assert (read_run_ledger(tmp_path / "run").num_steps if kept.exists() else 0) == (event == "on_step_end")


def test_a_run_that_was_stopped_goes_on_and_spends_the_plan_once(tmp_path):
    trainer_of(tmp_path / "run", callbacks=[Recorder(stop_after=1)]).train()
    before = read_run_ledger(tmp_path / "run")
    assert before.num_steps == 1
    out = trainer_of(tmp_path / "run").train(resume_from_checkpoint=True)
    after = read_run_ledger(tmp_path / "run")
    assert after.num_steps == out.global_step == 3 and after.num_lost == 0
    assert 0 < out.metrics["epsilon"] < math.inf


def test_another_plan_or_place_is_refused(tmp_path):
    trainer_of(tmp_path / "run", callbacks=[Recorder(stop_after=1)]).train()
    with pytest.raises(ConfigError, match="another plan") as caught:
        more = arguments(tmp_path / "run", max_steps=5)
        trainer_of(tmp_path / "run", args=more).train(resume_from_checkpoint=True)
    assert caught.value.code == "trainer-resume"
    with pytest.raises(ConfigError, match="not empty"):
        trainer_of(tmp_path / "run").train()
    with pytest.raises(ConfigError, match="where its ledger is"):
        trainer_of(tmp_path / "run").train(resume_from_checkpoint=str(tmp_path / "elsewhere"))


def test_the_saved_model_loads_with_transformers_and_carries_the_statement(tmp_path):
    from transformers import AutoModelForCausalLM

    trainer = trainer_of(tmp_path / "run")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for (name, ours), theirs in zip(trainer.model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "| δ | 0.001 |" in card and "zero-out-one" in card


def test_users_are_drawn_and_counted(tmp_path):
    owned = [{**row, "who": f"user {k % 12}"} for k, row in enumerate(rows())]
    privacy = PrivacyArguments(**PRIVACY, user_column="who", rows_per_user=2)
    trainer_of(tmp_path / "run", privacy=privacy, train_dataset=owned).train()
    ledger = read_run_ledger(tmp_path / "run")
    assert ledger.public["unit"] == "user"
    ((mechanism, steps),) = ledger.segments()
    assert steps == 3 and mechanism.sampling_prob == pytest.approx(8 / 12)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda row: {**row, "who": "x"}, "Row 0 .* 'author'.* Its columns: input_ids, attention_mask, who"),
        (lambda row: (row["input_ids"], "x"), "Row 0 .* Its columns: none: it is a tuple"),
    ],
)
def test_a_user_column_that_rows_lack_is_refused_by_name(tmp_path, change, text):
    privacy = PrivacyArguments(**PRIVACY, user_column="author", rows_per_user=2)
    with pytest.raises(DataError, match=text) as caught:
        trainer_of(tmp_path / "run", privacy=privacy, train_dataset=[change(row) for row in rows()]).train()
    assert caught.value.code == "data-column"
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


def test_rows_of_different_lengths_are_refused_before_anything_is_spent(tmp_path):
    privacy = PrivacyArguments(noise_multiplier=2.0, target_delta=1e-3)
    with pytest.raises(DataError, match="max_length") as caught:
        trainer_of(tmp_path / "run", privacy=privacy).train()
    assert caught.value.code == "trainer-rows"
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


def test_an_overridden_loss_is_refused_and_one_of_ones_own_is_used(tmp_path):
    class Mine(PrivateTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs)

    with pytest.raises(ConfigError, match=r"Mine\.compute_loss is never called"):
        trainer_of(tmp_path / "a", kind=Mine)

    calls = []

    def loss(model, rows):
        calls.append(sorted(rows))
        return per_example_loss(model)(model, rows)

    trainer_of(tmp_path / "b", loss_per_example=loss).train()
    assert calls and calls[0] == ["attention_mask", "input_ids", "labels"]


def test_a_loss_of_the_whole_batch_is_refused(tmp_path):
    def coupled(model, rows):
        each = per_example_loss(model)(model, rows)
        return each - each.mean()

    with pytest.raises(Exception, match="example") as caught:
        trainer_of(tmp_path / "run", loss_per_example=coupled).train()
    assert not isinstance(caught.value, StepError)
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


def test_callbacks_that_wait_for_gradients_are_refused(tmp_path):
    class Looks(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            raise AssertionError

    with pytest.raises(ConfigError, match=r"Looks has on_optimizer_step"):
        trainer_of(tmp_path / "run", callbacks=[Looks()])


def test_arguments_of_trainer_without_a_place_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="loss_per_example"):
        trainer_of(tmp_path / "run", compute_loss_func=lambda outputs, labels: outputs)
    with pytest.raises(ConfigError, match="lr_scheduler_type"):
        trainer_of(tmp_path / "run", optimizers=(None, object()))
    with pytest.raises(ConfigError, match="reticent sweep"):
        trainer_of(tmp_path / "run").hyperparameter_search()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_half_precision_checkpointed_activations_and_a_shown_loss_work_together(tmp_path):
    args = arguments(
        tmp_path / "run", bf16=True, activation_checkpointing=True, eval_strategy="steps", eval_steps=1,
        max_steps=2, logging_steps=1,
    )  # fmt: skip
    recorder = Recorder()
    privacy = PrivacyArguments(**PRIVACY, show_loss=True)
    trainer = trainer_of(
        tmp_path / "run", args=args, privacy=privacy, eval_dataset=rows(TEXTS[:5]), callbacks=[recorder]
    )
    out = trainer.train()
    assert out.training_loss > 0 and any("loss" in log for log in recorder.logs)
    assert list(read_run_ledger(tmp_path / "run").public["not_private"]) == ["loss"]


def test_privacy_arguments_are_checked():
    for wrong, text in (
        ({}, "give target_epsilon"),
        ({"target_epsilon": math.inf}, "without privacy"),
        ({"target_epsilon": 1.0, "user_column": "who"}, "belong together"),
    ):
        with pytest.raises(ConfigError, match=text):
            PrivacyArguments(**wrong)
    assert {f.name for f in dataclasses.fields(PrivacyArguments)} >= {"target_epsilon", "max_length"}
    assert issubclass(PrivateTrainer, Trainer)


def test_private_rows_are_not_scored_as_public_ones(tmp_path):
    mine = rows()
    for scored in (mine, {"test": rows(TEXTS[:5]), "train": mine}):
        with pytest.raises(ConfigError, match="holds the train_dataset") as caught:
            trainer_of(tmp_path / "run", train_dataset=mine, eval_dataset=scored)
        assert caught.value.code == "trainer-rows"


def test_private_rows_that_become_rows_to_score_later_are_refused(tmp_path):
    mine, other = rows(), rows(TEXTS[:5])
    trainer = trainer_of(tmp_path / "run", train_dataset=mine, eval_dataset={"public": other})
    for scored in (mine, {"public": other, "train": mine}):
        trainer.eval_dataset = scored
        for call in (trainer.train, trainer.evaluate, lambda scored=scored: trainer.evaluate(scored)):
            with pytest.raises(ConfigError, match="eval_dataset holds the train_dataset") as caught:
                call()
            assert caught.value.code == "trainer-rows"
    with pytest.raises(ConfigError, match="eval_dataset holds the train_dataset"):
        trainer.evaluate("train")  # by name, of those above
    with pytest.raises(ConfigError, match="test_dataset holds the train_dataset"):
        trainer.predict(mine)
    assert not (tmp_path / "run" / "ledger.jsonl").exists()

    trainer.eval_dataset = {"public": other}
    trainer.train_dataset = rows(TEXTS[:12])
    with pytest.raises(ConfigError, match="holds the train_dataset"):
        trainer.evaluate(trainer.train_dataset)
    with pytest.raises(ConfigError, match="holds the train_dataset"):
        trainer.evaluate(mine)  # they were to be trained on before
    assert trainer.evaluate()["eval_public_loss"] > 0
    assert trainer.predict(other).metrics["test_loss"] > 0


def test_a_table_of_datasets_is_known_by_its_contents(tmp_path):
    made = pytest.importorskip("datasets").Dataset.from_list(rows())
    with pytest.raises(ConfigError, match="holds the train_dataset"):
        trainer_of(tmp_path / "run", train_dataset=made, eval_dataset=copy.copy(made))
    trainer_of(tmp_path / "run", train_dataset=made, eval_dataset=made.select(range(5)))


def test_a_second_run_does_not_begin_from_the_weights_of_the_first(tmp_path):
    trainer = trainer_of(tmp_path / "a", callbacks=[Recorder(stop_after=1)])
    trainer.train()
    trainer.args.output_dir = str(tmp_path / "b")
    with pytest.raises(ConfigError, match="in no ledger of another run in") as caught:
        trainer.train()
    assert caught.value.code == "trainer-resume" and not (tmp_path / "b").exists()


def test_nor_does_it_where_the_folder_of_the_first_was_removed(tmp_path):
    trainer = trainer_of(tmp_path / "a", callbacks=[Recorder(stop_after=1)])
    trainer.train()
    shutil.rmtree(tmp_path / "a")
    for make in (lambda: None, (tmp_path / "a").mkdir):
        make()
        with pytest.raises(ConfigError, match="in no ledger of another run in") as caught:
            trainer.train()
        assert caught.value.code == "trainer-resume"
    assert not any((tmp_path / "a").iterdir())


def test_the_same_trainer_goes_on_with_its_own_run(tmp_path):
    stop = Recorder(stop_after=1)
    trainer = trainer_of(tmp_path / "a", callbacks=[stop])
    trainer.train()
    stop.stop_after = None
    assert trainer.train(resume_from_checkpoint=True).global_step == 3
