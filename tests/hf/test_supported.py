"""Every supported field of TrainingArguments is seen at work: none is silently ignored.

A row of `SEEN` names a field, the run that it is set in, its value, where to look, and what is there only
if the field did something. Fields that do not disturb one another share a run; `usual` sets none of them,
and every look must find something else there.
"""

import functools
import inspect
import json
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers.integrations.integration_utils as integrations
from transformers import DataCollatorForLanguageModeling, GPT2LMHeadModel, TrainerCallback, modelcard
from transformers.trainer_pt_utils import EvalLoopContainer
from transformers.utils import logging

from reticent.account.ledger import read_run_ledger
from reticent.hf import FIELDS, PrivacyArguments, PrivateTrainer
from reticent.train import mix_seed
from tests.hf import test_fields, test_trainer
from tests.hf.test_trainer import PRIVACY, TEXTS, arguments, rows
from tests.recipes.text.models import byte_tokenizer, gpt2

pytestmark = [
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing_kwargs. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
SCORES = (2.0, 1.0, 5.0, 9.0, 9.0)


class WatchedGPT2LMHeadModel(GPT2LMHeadModel):
    """Notes (training, rows at once, under autocast) of every call."""

    @functools.wraps(GPT2LMHeadModel.forward)  # `Trainer` reads its arguments for columns and labels
    def forward(self, *args: Any, **inputs: Any) -> Any:
        self.calls.append((self.training, len(inputs["input_ids"]), torch.is_autocast_enabled("cpu")))
        return super().forward(*args, **inputs)


class WatchedCollator(DataCollatorForLanguageModeling):
    """Notes (columns, seed of its draws) of every call; drops the column that no model reads."""

    def __call__(self, features: list[Any], return_tensors: Any = None) -> Any:
        self.calls.append((sorted(features[0]), torch.initial_seed()))
        return super().__call__([{k: v for k, v in f.items() if k != "extra"} for f in features])


@dataclass
class Seen(TrainerCallback):
    """What a run did, as its callbacks, collator, model, metrics and logger were told."""

    trainer: PrivateTrainer | None = None
    rates: list[float] = field(default_factory=list)
    logged: list[int] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    scored: list[Any] = field(default_factory=list)
    collected: int = 0
    told: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    sampling_prob: float = 0.0

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "learning_rate" in logs:
            self.logged.append(state.global_step)

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated.append(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        self.saved.append(state.global_step)

    def metrics(self, found: Any, compute_result: bool | None = None) -> dict[str, float]:
        """`compute_metrics`."""
        self.scored.append((found, compute_result))
        return {"score": SCORES[min(len(self.scored), len(SCORES)) - 1]}


def fake_trackio(told: dict[str, Any]) -> types.ModuleType:
    """A logger that notes what it is told, in place of one that goes to the network."""
    made = types.ModuleType("trackio")
    space = types.SimpleNamespace(get=lambda: told["init"]["space_id"])
    made.__version__ = "99"
    made.init = lambda **settings: told.update(init=settings)
    made.config = type("Config", (dict,), {"update": lambda self, *a, **k: None})()
    made.context_vars = types.SimpleNamespace(current_space_id=space)
    made.log = lambda values: told.setdefault("log", []).append(values)
    made.finish = lambda: None
    made.freeze = lambda **settings: told.update(freeze=settings) or settings["new_space_id"]
    return made


class Look(NamedTuple):
    """Where a field is set, and where it shows."""

    run: str
    value: Any
    look: Callable[[Seen], Any]
    expected: Any


def group(name: str, seen: Seen) -> Any:
    return seen.trainer.optimizer.param_groups[0][name]


def calls(seen: Seen, *, training: bool) -> list[tuple[bool, int, bool]]:
    return [call for call in seen.trainer.model.calls if call[0] == training]


def rows_at_once(seen: Seen, *, training: bool) -> int:
    """Of the last calls: the first ones prove that rows do not meet, on a few rows of their own."""
    return max(number for _, number, _ in calls(seen, training=training)[-8:])


def checkpointed(seen: Seen) -> int:
    """Number of layers whose activations are made anew."""
    return sum(getattr(m, "gradient_checkpointing", False) for m in seen.trainer.model.transformer.h)


def another_loss(seen: Seen) -> bool:
    """Whether the first loss, of the same rows at the same weights, is not that of the usual run."""
    loss, usual = (
        json.loads((Path(run.trainer.args.output_dir) / "not-private.jsonl").read_text().splitlines()[0])[
            "loss"
        ]
        for run in (seen, _run("usual"))
    )
    return abs(loss - usual) > 1e-3


def callback_names(seen: Seen) -> list[str]:
    return [type(callback).__name__ for callback in seen.trainer.callback_handler.callbacks]


def trackio(*path: str) -> Callable[[Seen], Any]:
    def look(seen: Seen) -> Any:
        found: Any = seen.told
        for name in path:
            found = found.get(name, {})
        return found

    return look


RATES = pytest.approx([0.0, 0.02, 0.005, 0.015])
EVALUATED = (lambda seen: seen.evaluated, [2, 3, 4])
BEST = (lambda seen: seen.trainer.state.best_metric, 1.0)
SEEN = {
    # trained with all of these at once
    "per_device_train_batch_size": Look("other", 2, partial(rows_at_once, training=True), 2),
    "gradient_accumulation_steps": Look("other", 3, lambda seen: seen.sampling_prob, pytest.approx(6 / 24)),
    "max_steps": Look("other", 4, lambda seen: seen.steps, 4),
    "learning_rate": Look("other", 0.02, lambda seen: seen.rates, RATES),
    "lr_scheduler_type": Look("other", "cosine_with_restarts", lambda seen: seen.rates, RATES),
    "lr_scheduler_kwargs": Look("other", {"num_cycles": 2}, lambda seen: seen.rates, RATES),
    "warmup_steps": Look("other", 1, lambda seen: seen.rates, RATES),
    "weight_decay": Look("other", 0.1, partial(group, "weight_decay"), 0.1),
    "adam_beta1": Look("other", 0.8, lambda seen: group("betas", seen)[0], 0.8),
    "adam_beta2": Look("other", 0.9, lambda seen: group("betas", seen)[1], 0.9),
    "adam_epsilon": Look("other", 1e-3, partial(group, "eps"), 1e-3),
    "bf16": Look("other", True, lambda seen: all(half for *_, half in calls(seen, training=True)), True),
    "activation_checkpointing": Look("other", True, checkpointed, 1),
    "activation_checkpointing_kwargs": Look("other", {"every_n_layers": 2}, checkpointed, 1),
    "seed": Look(
        "other", 11, lambda seen: seen.trainer.data_collator.calls[0][1], mix_seed(11, "collate", 0, 0)
    ),
    "remove_unused_columns": Look(
        "other", False, lambda seen: "extra" in seen.trainer.data_collator.calls[0][0], True
    ),
    "logging_steps": Look("other", 3, lambda seen: seen.logged, [1, 3]),
    "logging_first_step": Look("other", True, lambda seen: seen.logged, [1, 3]),
    "eval_strategy": Look("other", "steps", *EVALUATED),
    "eval_steps": Look("other", 1, *EVALUATED),
    "eval_delay": Look("other", 2, *EVALUATED),
    "save_steps": Look("other", 3, lambda seen: seen.saved, [3, 4]),
    "metric_for_best_model": Look("other", "score", *BEST),
    "greater_is_better": Look("other", False, *BEST),
    "per_device_eval_batch_size": Look("other", 2, partial(rows_at_once, training=False), 2),
    "include_for_metrics": Look(
        "other", ["loss", "inputs"],
        lambda seen: [getattr(seen.scored[0][0], name) is not None for name in ("losses", "inputs")],
        [True, True],
    ),
    "eval_do_concat_batches": Look(
        "other", False, lambda seen: [len(part) for part in seen.scored[-1][0].predictions], [2, 2, 1]
    ),
    "eval_accumulation_steps": Look("other", 1, lambda seen: seen.collected, 16),
    # one step of half an epoch; at the usual first weights, on the usual first rows
    "num_train_epochs": Look("epoch", 0.3, lambda seen: seen.steps, 1),
    "label_smoothing_factor": Look("epoch", 0.9, another_loss, True),
    "optim": Look("epoch", "sgd", lambda seen: type(seen.trainer.optimizer).__name__, "SGD"),
    "gradient_checkpointing": Look("epoch", True, checkpointed, 1),
    "gradient_checkpointing_kwargs": Look("epoch", {"every_n_layers": 2}, checkpointed, 1),
    "logging_strategy": Look("epoch", "epoch", lambda seen: seen.logged, [1]),
    "save_strategy": Look("epoch", "no", lambda seen: seen.saved, []),
    "disable_tqdm": Look(
        "epoch", False, lambda seen: any("Progress" in name for name in callback_names(seen)), True
    ),
    "report_to": Look(
        "epoch", "trackio", lambda seen: "train/epsilon" in seen.told.get("log", [{}])[0], True
    ),
    "run_name": Look("epoch", "mine", trackio("init", "name"), "mine"),
    "project": Look("epoch", "films", trackio("init", "project"), "films"),
    "trackio_space_id": Look("epoch", "me/space", trackio("init", "space_id"), "me/space"),
    "trackio_bucket_id": Look("epoch", "me/bucket", trackio("init", "bucket_id"), "me/bucket"),
    "trackio_static_space_id": Look("epoch", "me/still", trackio("freeze", "new_space_id"), "me/still"),
    # never trained, only evaluated
    "use_cache": Look("evaluated", True, lambda seen: seen.trainer.model.config.use_cache, True),
    "log_level": Look("evaluated", "error", lambda seen: seen.told["verbosity"], logging.ERROR),
    "label_names": Look(
        "evaluated", ["attention_mask"], lambda seen: {*seen.scored[0][0].label_ids.ravel().tolist()}, {0, 1}
    ),
    "batch_eval_metrics": Look("evaluated", True, lambda seen: [last for _, last in seen.scored], [True]),
    "prediction_loss_only": Look("loss only", True, lambda seen: seen.scored, []),
}  # fmt: skip
# Fields that no look in one run tells from their defaults (on a CPU), and tests that name them.
ELSEWHERE = {
    "output_dir": test_trainer.test_a_second_run_does_not_begin_from_the_weights_of_the_first,
    "save_total_limit": test_fields.test_all_problems_are_named_at_once,
    "use_cpu": test_fields.test_a_field_of_a_subclass_is_refused_unless_it_has_its_default,
}
_RUNS: dict[str, Seen] = {}


@pytest.fixture(autouse=True, scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the runs of this module are kept while it is tested."""
    _RUNS.clear()
    _FOLDER.append(tmp_path_factory.mktemp("runs"))
    yield
    _RUNS.clear()
    _FOLDER.clear()


_FOLDER: list[Any] = []


def _run(name: str) -> Seen:
    """The run with all values of that name; made once."""
    if name not in _RUNS:
        with pytest.MonkeyPatch.context() as patched:
            _RUNS[name] = _made(name, patched)
    return _RUNS[name]


def _made(name: str, patched: pytest.MonkeyPatch) -> Seen:
    settings = {key: look.value for key, look in SEEN.items() if look.run == name}
    if "num_train_epochs" in settings:
        settings["max_steps"] = -1
    seen, verbosity = Seen(), logging.get_verbosity()
    patched.setitem(sys.modules, "trackio", fake_trackio(seen.told))
    patched.setattr(integrations, "is_trackio_available", lambda: True)
    patched.setattr(modelcard, "AUTOGENERATED_TRAINER_COMMENT", modelcard.AUTOGENERATED_TRAINER_COMMENT)
    model = gpt2()
    model.__class__, model.calls = WatchedGPT2LMHeadModel, []
    collator = WatchedCollator(byte_tokenizer(), mlm=False)
    collator.calls = []
    out = _FOLDER[0] / name
    try:
        seen.trainer = PrivateTrainer(
            model=model,
            args=arguments(out, **settings),
            train_dataset=[{**row, "extra": 1} for row in rows()],
            eval_dataset=rows(TEXTS[:5]),
            data_collator=collator,
            compute_metrics=seen.metrics,
            callbacks=[seen],
            privacy=PrivacyArguments(**PRIVACY, noise_seed=5, show_loss=True),
        )
        seen.told["verbosity"] = logging.get_verbosity()
    finally:
        logging.set_verbosity(verbosity)
    if name in ("usual", "other", "epoch"):
        seen.trainer.train()
        ledger = read_run_ledger(out)
        ((mechanism, seen.steps),) = ledger.segments()
        seen.sampling_prob = mechanism.sampling_prob
    collect = EvalLoopContainer.to_cpu_and_numpy

    def counted(container: Any) -> None:
        seen.collected += 1
        collect(container)

    patched.setattr(EvalLoopContainer, "to_cpu_and_numpy", counted)
    evaluated = list(seen.evaluated)
    seen.trainer.evaluate()
    seen.evaluated = evaluated
    return seen


@pytest.mark.parametrize("name", SEEN)
def test_a_supported_field_does_what_it_says(name: str) -> None:
    at = SEEN[name]
    assert at.look(_run(at.run)) == at.expected
    assert at.look(_run("usual")) != at.expected, "the look would not notice if the field were ignored"


def test_every_supported_field_is_looked_at() -> None:
    supported = {name for name, use in FIELDS.items() if use.kind == "supported"}
    assert supported == SEEN.keys() | ELSEWHERE.keys() and not SEEN.keys() & ELSEWHERE.keys()
    for name, test in ELSEWHERE.items():
        assert name in inspect.getsource(test), f"{test.__name__} says nothing of {name}"
