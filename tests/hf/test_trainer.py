"""`PrivateTrainer` on tiny random models: the joint's own numbers, the ledger's epsilon, nothing ignored."""

import copy
import dataclasses
import inspect
import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from reticent.account.ledger import read_run_ledger
from reticent.errors import ConfigError, DataError, StepError
from reticent.hf import PrivacyArguments, PrivateTrainer, per_example_loss
from reticent.hf._trainer import NOT_CALLED
from reticent.train import OpenStep, TrainSettings, train
from tests.recipes.text.models import byte_tokenizer, gpt2
from tests.support.noted import clip_methods

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


def often(out):
    """20 of 24 rows a step: the first batch, at which losses are checked, is empty in 2e-19 of runs."""
    return arguments(out, gradient_accumulation_steps=5)


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


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_weights_are_those_of_the_joint(tmp_path, low_memory, monkeypatch):
    methods = clip_methods(monkeypatch)
    privacy = PrivacyArguments(**PRIVACY, noise_seed=5, low_memory=low_memory)
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
    kept = json.loads((tmp_path / "hf" / "run.json").read_text(encoding="utf-8"))["settings"]
    assert kept["low_memory"] is low_memory and ("ghost" in methods) == low_memory


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
        trainer_of(tmp_path / "run", args=often(tmp_path / "run"), loss_per_example=coupled).train()
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


def test_nor_does_another_trainer_around_the_same_model(tmp_path):
    """A cell of a notebook, run again: the second ledger would leave out what the first run spent."""
    first = trainer_of(tmp_path / "a")
    first.train()
    for settings in ({"model": first.model}, {"model": Around(first.model)}):
        again = trainer_of(tmp_path / "b", loss_per_example=loss_of_words, **settings)
        with pytest.raises(ConfigError, match="in no ledger of another run in") as caught:
            again.train()
        assert caught.value.code == "trainer-resume"
    assert not (tmp_path / "b" / "ledger.jsonl").exists()


class Around(torch.nn.Module):
    """A model of one's own, around one of transformers."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


def loss_of_words(model, rows):
    inner = getattr(model, "inner", model)
    return per_example_loss(inner)(inner, rows)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time:UserWarning")
def test_nor_under_a_wrapper_of_peft(tmp_path):
    peft = pytest.importorskip("peft")
    base = gpt2()
    first = trainer_of(
        tmp_path / "a", model=peft.get_peft_model(base, peft.LoraConfig(r=2, fan_in_fan_out=True))
    )
    first.train()
    merged = first.model.merge_and_unload()
    assert merged is base
    for model in (merged, peft.get_peft_model(base, peft.LoraConfig(r=2, fan_in_fan_out=True))):
        with pytest.raises(ConfigError, match="in no ledger of another run in"):
            trainer_of(tmp_path / "b", model=model).train()


def test_nor_a_model_that_was_loaded_from_a_runs_folder(tmp_path):
    first = trainer_of(tmp_path / "a", callbacks=[Recorder(stop_after=1)])
    first.train()
    first.save_model(str(tmp_path / "a" / "model"))
    loaded = type(first.model).from_pretrained(tmp_path / "a" / "model")
    with pytest.raises(ConfigError, match="in no ledger of another run in") as caught:
        trainer_of(tmp_path / "b", model=loaded).train()
    assert caught.value.code == "trainer-resume" and not (tmp_path / "b" / "ledger.jsonl").exists()
    out = trainer_of(tmp_path / "a", model=loaded).train(resume_from_checkpoint=True)
    assert out.global_step == 3, "its own run it may go on with"


def test_a_model_trained_on_other_data_may_go_on_if_that_is_said_and_it_is_noted(tmp_path):
    first = trainer_of(tmp_path / "a")
    first.train()
    said = PrivacyArguments(**PRIVACY, other_data=True)
    with pytest.raises(ConfigError, match="are those of the run in") as caught:
        trainer_of(tmp_path / "b", model=first.model, privacy=said).train()  # alike rows, made anew
    assert caught.value.code == "trainer-resume"
    others = rows([f"another's {k}" for k in range(20)])
    stop = Recorder(stop_after=1)
    trainer_of(
        tmp_path / "b", model=first.model, privacy=said, train_dataset=others, callbacks=[stop]
    ).train()
    about = json.loads((tmp_path / "b" / "run.json").read_text(encoding="utf-8"))
    assert about["config"]["other_data"] is True
    with pytest.raises(ConfigError, match="other_data = True, now False"):
        trainer_of(tmp_path / "b", train_dataset=others).train(resume_from_checkpoint=True)
    again = trainer_of(tmp_path / "b", model=first.model, train_dataset=others, privacy=said)
    assert again.train(resume_from_checkpoint=True).global_step == 3


def test_a_run_that_failed_before_its_first_step_does_not_keep_the_model_from_another(tmp_path):
    model = gpt2()

    def coupled(model, rows):
        each = per_example_loss(model)(model, rows)
        return each - each.mean()

    args = often(tmp_path / "a")
    with pytest.raises(Exception, match="example"):
        trainer_of(tmp_path / "a", model=model, args=args, loss_per_example=coupled).train()
    trainer_of(tmp_path / "b", callbacks=[Recorder(stop_after=1)]).train()
    with pytest.raises(ConfigError, match="another plan"):
        more = arguments(tmp_path / "b", max_steps=5)
        trainer_of(tmp_path / "b", model=model, args=more).train(resume_from_checkpoint=True)
    assert trainer_of(tmp_path / "c", model=model).train().global_step == 3


def test_a_run_goes_on_with_the_users_it_began_with(tmp_path):
    owned = [{**row, "who": f"u{k % 12}", "other": f"v{k // 2}"} for k, row in enumerate(rows())]

    def asked(column="who", most=2):
        privacy = PrivacyArguments(**PRIVACY, user_column=column, rows_per_user=most)
        return trainer_of(tmp_path / "run", privacy=privacy, train_dataset=owned, callbacks=[stop])

    stop = Recorder(stop_after=1)
    asked().train()
    stop.stop_after = None
    for other, named in (
        (asked("other"), "user_column = 'who', now 'other'"),
        (asked(most=1), "rows_per_user"),
    ):
        with pytest.raises(ConfigError, match=named) as caught:
            other.train(resume_from_checkpoint=True)
        assert caught.value.code == "trainer-resume"
    path = tmp_path / "run" / "run.json"
    text = path.read_text(encoding="utf-8")
    about = json.loads(text)
    del about["config"]["user_column"], about["config"]["rows_per_user"]  # as older versions wrote it
    path.write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(ConfigError, match="of an older version"):
        asked().train(resume_from_checkpoint=True)
    path.write_text(text, encoding="utf-8")
    assert read_run_ledger(tmp_path / "run").num_steps == 1
    assert asked().train(resume_from_checkpoint=True).global_step == 3


@pytest.mark.parametrize(
    ("privacy", "settings", "named"),
    [
        ({"show_loss": True}, {}, "show_loss = False, now True"),
        ({"show_norms": True}, {}, "show_norms"),
        ({"noise_seed": 4}, {}, "noise_seed = the default, now 4"),
        ({}, {"seed": 9}, "seed = 3, now 9"),
        ({}, {"weight_decay": 0.5}, "weight_decay"),
    ],
)
def test_settings_that_a_resumed_run_would_ignore_are_refused(tmp_path, privacy, settings, named):
    trainer_of(tmp_path / "run", callbacks=[Recorder(stop_after=1)]).train()
    changed = PrivacyArguments(**PRIVACY, **privacy)
    again = trainer_of(tmp_path / "run", privacy=changed, args=arguments(tmp_path / "run", **settings))
    with pytest.raises(ConfigError, match=named) as caught:
        again.train(resume_from_checkpoint=True)
    assert caught.value.code == "trainer-resume"
    assert read_run_ledger(tmp_path / "run").num_steps == 1


def test_a_run_goes_on_with_fewer_rows_at_once(tmp_path, monkeypatch):
    """As after a stop for want of memory; what a batch is does not change."""
    trainer_of(tmp_path / "run", callbacks=[Recorder(stop_after=1)]).train()
    fewer = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    again = trainer_of(tmp_path / "run", args=arguments(tmp_path / "run", **fewer))
    seen, share = [], OpenStep.backward

    def backward(step, loss_per_example, chunk):
        seen.append(len(chunk["input_ids"]))
        return share(step, loss_per_example, chunk)

    monkeypatch.setattr(OpenStep, "backward", backward)
    assert again.train(resume_from_checkpoint=True).global_step == 3
    assert set(seen) == {1}


class Looks(TrainerCallback):
    def on_optimizer_step(self, args, state, control, **kwargs):
        raise AssertionError


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.add_callback(Looks()), "Looks has on_optimizer_step"),
        (lambda t: setattr(t.args, "fp16", True), "fp16: "),
        (lambda t: setattr(t.args, "max_grad_norm", 0.5), "max_grad_norm: "),
        (lambda t: setattr(t, "compute_loss", lambda *given: None), "compute_loss is never called"),
    ],
)
def test_what_is_set_after_a_trainer_was_made_is_refused_as_before(tmp_path, change, named):
    trainer = trainer_of(tmp_path / "run")
    change(trainer)
    with pytest.raises(ConfigError, match=named) as caught:
        trainer.train()
    assert caught.value.code == "trainer-argument" and not (tmp_path / "run" / "ledger.jsonl").exists()


def test_what_is_set_after_a_trainer_was_made_is_described(tmp_path):
    trainer = trainer_of(tmp_path / "run")
    trainer.args.learning_rate = 0.25
    trainer.train()
    about = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert about["config"]["learning_rate"] == 0.25


# Methods of `Trainer` that private training, evaluation or saving calls, or that are for the user to call.
CALLED = frozenset(
    """
    __init__ _build_accelerator_args _determine_best_metric _finish_current_push
    _get_collator_with_removed_columns _get_dataloader _get_eval_sampler _move_model_to_device _save
    _set_signature_columns_if_needed _validate_args _wrap_model add_callback
    create_accelerator_and_postprocess create_model_card create_optimizer end evaluate evaluation_loop
    get_decay_parameter_names get_eval_dataloader get_optimizer_cls_and_kwargs get_test_dataloader
    hyperparameter_search init_hf_repo is_local_process_zero is_world_process_zero log num_examples
    pop_callback predict prediction_step push_to_hub remove_callback save_model train
    get_learning_rates get_num_trainable_parameters get_optimizer_group log_metrics metrics_format
    save_metrics save_state
    """.split()
)
# Those that only evaluation calls: what they were changed to would hold there, and not in training.
ONLY_EVALUATION = frozenset(
    """
    _get_num_items_in_batch _prepare_context_parallel_inputs _prepare_input _prepare_inputs
    _remove_unused_columns autocast_smart_context_manager compute_loss compute_loss_context_manager
    get_cp_size get_sp_size get_tp_size
    """.split()
)


def _functions_of_trainer():
    found = {
        name: inspect.unwrap(getattr(member, "__func__", member)) for name, member in vars(Trainer).items()
    }
    return {name: member for name, member in found.items() if inspect.isfunction(member)}


def test_every_method_of_the_installed_trainer_is_called_or_may_not_be_overridden():
    names = set(_functions_of_trainer())
    assert names == CALLED | NOT_CALLED, "say which: private training calls them, or it refuses another"
    assert not CALLED & NOT_CALLED and ONLY_EVALUATION <= NOT_CALLED


def test_methods_that_are_said_not_to_be_called_are_not(tmp_path):
    names = {member.__code__: name for name, member in _functions_of_trainer().items()}
    seen = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code in names:
            seen.add(names[frame.f_code])

    def watched(call):
        sys.setprofile(note)
        try:
            call()
        finally:
            sys.setprofile(None)

    args = arguments(tmp_path / "run", logging_steps=1, save_strategy="steps", save_steps=1)
    watched(lambda: trainer_of(tmp_path / "run", args=args, eval_dataset=rows(TEXTS[:5])).train())
    assert "create_optimizer" in seen and not seen & NOT_CALLED
    args = arguments(tmp_path / "other", eval_strategy="steps", eval_steps=1)
    watched(lambda: trainer_of(tmp_path / "other", args=args, eval_dataset=rows(TEXTS[:5])).train())
    assert seen & NOT_CALLED <= ONLY_EVALUATION


@pytest.mark.parametrize("name", ["_prepare_inputs", "create_optimizer_and_scheduler", "_save_checkpoint"])
def test_every_method_that_is_not_called_may_not_be_overridden(tmp_path, name):
    kind = type("Mine", (PrivateTrainer,), {name: lambda self, *given, **named: None})
    with pytest.raises(ConfigError, match=rf"Mine\.{name} is never called") as caught:
        trainer_of(tmp_path / "run", kind=kind)
    assert caught.value.code == "trainer-argument"


def test_rows_longer_than_max_length_are_refused_though_all_are_padded_alike(tmp_path):
    longer = rows(["x" * (33 + k) for k in range(24)])  # a multiple of 32 holds them all: 64
    with pytest.raises(DataError, match="longer than max_length = 32") as caught:
        trainer_of(tmp_path / "run", train_dataset=longer).train()
    assert caught.value.code == "trainer-rows" and "24 of them (number 0, 1, 2, ...)" in str(caught.value)
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


def _classifier_of(out, change, *, problem=None, classes=2, **settings):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, num_labels=classes, problem_type=problem,
    )  # fmt: skip
    given = [{**row, "label": k % 2} for k, row in enumerate(rows())]
    for k in (7, 20):
        change(given[k])
    return PrivateTrainer(
        model=BertForSequenceClassification(config), args=arguments(out), train_dataset=given,
        processing_class=byte_tokenizer(), privacy=PrivacyArguments(**PRIVACY), **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda row: row.update(label=2), "labels outside 0 to 1"),
        (lambda row: row.update(label=-1), "labels outside 0 to 1"),
        (lambda row: row.update(input_ids=[*row["input_ids"][:-1], 400]), "input_ids outside 0 to 258"),
        (lambda row: row.update(input_ids=[*row["input_ids"][:-1], -1]), "input_ids outside 0 to 258"),
    ],
)
def test_tokens_and_labels_that_the_model_does_not_have_are_refused_before_a_step(tmp_path, change, text):
    with pytest.raises(DataError, match=text) as caught:
        _classifier_of(tmp_path / "run", change).train()
    assert caught.value.code == "trainer-rows" and "2 of them (number 7, 20)" in str(caught.value)
    assert "400" not in str(caught.value), "nothing of what is in the row"
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


def test_labels_that_the_loss_ignores_or_reads_as_numbers_pass(tmp_path):
    _classifier_of(tmp_path / "a", lambda row: row.update(label=-100)).train()
    _classifier_of(tmp_path / "b", lambda row: row.update(label=7), classes=1, problem="regression").train()

    def mine(model, given):
        out = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
        return out.logits.sum(1) * given["labels"]

    _classifier_of(tmp_path / "c", lambda row: row.update(label=7), loss_per_example=mine).train()


def test_words_to_predict_that_the_model_does_not_have_are_refused(tmp_path):
    given = [{**row, "labels": [*row["input_ids"][:-1], 300]} for row in rows(["abc"] * 24)]
    trainer = trainer_of(tmp_path / "run", train_dataset=given)
    trainer.data_collator = default_data_collator
    trainer.privacy = PrivacyArguments(noise_multiplier=2.0, target_delta=1e-3)
    with pytest.raises(DataError, match="labels outside 0 to 258, the words of the model"):
        trainer.train()
    for row in given:
        row["labels"][-1] = -100
    assert trainer.train().global_step == 3
