"""`PrivateTrainer`: the `Trainer` of transformers, whose training is private.

Room: hf. Imports transformers; may import torch and every room below.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PredictionOutput, TrainOutput

from reticent.errors import ConfigError, DataError
from reticent.plan import Plan
from reticent.report import write_card, write_report
from reticent.train import (
    RunDescription,
    TrainResult,
    TrainSettings,
    UserRows,
    over_users,
    read_run,
    resume,
    train,
)

from ._companion import TrainerCompanion, refuse_unheard, spent, steps_of
from ._fields import FIELDS, Use, check_arguments, chosen, usual_of
from ._going_on import check_same_run, goes_on, noted
from ._limits import row_check
from ._losses import per_example_loss
from ._origin import refuse_earlier_run, remember, versions, was_spent
from ._privacy import PrivacyArguments
from ._rows import CollatedRows, fixed_length

# Methods of `Trainer` (transformers 5.23) that training would call, and private training does not.
NOT_CALLED: Final = frozenset(
    """
    _clip_grad_norm _defer_fsdp_gradient_reduction _evaluate _finalize_training _get_grad_norm
    _get_learning_rate _get_num_items_in_batch _get_output_dir _get_train_sampler _has_mixed_mesh_grads
    _hp_search_setup _init_training_state _inner_training_loop _issue_warnings_after_load _load_best_model
    _load_callback_state _load_from_checkpoint _load_optimizer_and_scheduler _load_rng_state _load_scaler
    _maybe_log_save_evaluate _mixed_mesh_grad_norm _prepare_context_parallel_inputs _prepare_for_training
    _prepare_input _prepare_inputs _push_from_checkpoint _remove_unused_columns _report_to_hp_search
    _run_epoch _save_checkpoint _save_optimizer_and_scheduler _save_rng_state _save_scaler
    _sync_replicated_trainable_parameters _track_num_input_tokens _tune_save_checkpoint
    _update_auto_batch_size autocast_smart_context_manager call_model_init compute_loss
    compute_loss_context_manager create_optimizer_and_scheduler create_scheduler floating_point_ops
    get_batch_samples get_cp_size get_sp_size get_total_train_batch_size get_tp_size
    get_train_dataloader set_initial_training_values store_flos training_step
    """.split()
)


class PrivateTrainer(Trainer):
    """A `Trainer` whose `train()` is differentially private; everything else is as in transformers.

        from reticent.hf import PrivacyArguments, PrivateTrainer

        trainer = PrivateTrainer(
            model=model, args=args, train_dataset=rows, data_collator=collator,
            privacy=PrivacyArguments(target_epsilon=8.0),
        )
        trainer.train()

    Rows are drawn by Poisson sampling, per_device_train_batch_size x gradient_accumulation_steps of them
    on average; each row's gradient is clipped; noise is added once to their sum; the ledger in `output_dir`
    says what ran, and epsilon is read from it.

    Args:
        model: of transformers, or of peft around one.
        args: `reticent.hf.FIELDS` says what becomes of each field.
        data_collator: called with one row at a time; must make all rows alike long.
        train_dataset: the private rows: map-style, with a length.
        eval_dataset: PUBLIC rows: their scores are logged and shown, and nothing protects them.
        processing_class: as in `Trainer`.
        model_init: refused: it is for trials, each of which reads the private data.
        compute_loss_func: refused: it is given whole batches. See `loss_per_example`.
        compute_metrics: as in `Trainer`, on `eval_dataset`.
        callbacks: as in `Trainer`, but for events around gradients.
        optimizers: (an optimizer of `torch.optim`, None).
        optimizer_cls_and_kwargs: as in `Trainer`.
        preprocess_logits_for_metrics: as in `Trainer`.
        privacy: what the run may spend.
        loss_per_example: `loss_per_example(model, rows)` for collated rows by name, one loss for each
            row, shape (B,); by default the model's own, see `per_example_loss`.

    Guarantee:
        That of `reticent.train` for everything in `output_dir` that training writes, and for the
        weights. What would be ignored is refused by name.

    Raises:
        ConfigError[trainer-argument]: an argument, a callback or an overridden method has no place here.
        ConfigError[trainer-rows]: the collator cannot make all rows alike long, or the private rows would be
            scored as public ones.
    """

    _uses: ClassVar[Mapping[str, Use]] = FIELDS

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        model_init: None = None,
        compute_loss_func: None = None,
        compute_metrics: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Any = None,
        privacy: PrivacyArguments,
        loss_per_example: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        if not isinstance(args, TrainingArguments):
            raise ConfigError(
                "PrivateTrainer needs args, a TrainingArguments: there is no usual batch size or number "
                "of steps "
                "for a private run.",
                code="trainer-argument",
            )
        self._usual = usual_of(args)  # now: it resets what `Trainer` sets up below
        check_arguments(args, self._uses, usual=self._usual)
        _refuse_overridden(self)
        self._private_rows: list[Any] = [train_dataset]  # whatever `train_dataset` has been
        refuse_private_scores(self._private_rows, eval_dataset)
        if model_init is not None or compute_loss_func is not None:
            raise ConfigError(
                "model_init and compute_loss_func are not used by private training. Give the model "
                "itself, and a "
                "loss as loss_per_example(model, rows), which returns one loss for each row.",
                code="trainer-argument",
            )
        if optimizers[1] is not None:
            raise ConfigError(
                "optimizers = (optimizer, schedule): give (optimizer, None), and the schedule as "
                "TrainingArguments(lr_scheduler_type=...).",
                code="trainer-argument",
            )
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        refuse_unheard(self.callback_handler.callbacks)
        fixed_length(self.data_collator, privacy.max_length)
        self.privacy: Final = privacy
        self.private_result: TrainResult | None = None
        self._loss_per_example = loss_per_example

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train privately to the end of the plan, or until a callback stops it; keep the run in `output_dir`.

        Args:
            resume_from_checkpoint: True (or `output_dir` itself) goes on with the run that is there.
            trial: refused.
            ignore_keys_for_eval: as in `Trainer`.

        Returns:
            Steps spent; the training loss as NaN unless it is shown; epsilon and delta among the metrics.

        Raises:
            ConfigError[out-exists]: `output_dir` holds something, and this is no resume.
            ConfigError[trainer-argument]: what is refused when a trainer is made was set or put in since.
            ConfigError[trainer-resume]: the run there has another plan or other settings, or the model was
                trained by a run that this one does not go on with, and whose cost would be in no ledger of
                this one.
            ConfigError[trainer-rows]: `eval_dataset` now holds the private rows.
            DataError[trainer-rows]: rows are of different lengths, or longer than `max_length`, or hold
                tokens or labels that the model does not have.
            DataError[data-column]: rows have no `user_column`.
            ReticentError: as `reticent.train`, before anything is spent.
        """
        if trial is not None:
            raise ConfigError(
                "A trial reads the private data again, and its cost is in no ledger: use `reticent sweep`.",
                code="trainer-argument",
            )
        self._refuse_unused()
        folder = Path(self.args.output_dir or "")
        going_on = goes_on(resume_from_checkpoint, folder)
        self._private_rows.append(self.train_dataset)
        refuse_private_scores(self._private_rows, self.eval_dataset)
        self._ignored_for_eval = ignore_keys_for_eval
        dataset, loss, rows = self._rows_and_loss()
        refuse_earlier_run(
            self._trained, folder, going_on=going_on, rows=rows, other_data=self.privacy.other_data
        )
        num_steps, each = steps_of(self.args, len(dataset))
        plan = self.privacy.plan(
            num_units=len(dataset),
            expected_batch_size=float(
                self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
            ),
            num_steps=num_steps,
        )
        about = chosen(self.args, self._uses, usual=self._usual)
        if going_on:
            check_same_run(folder, read_run(folder), plan, args=self.args, chosen=about, privacy=self.privacy)
        self._prepare(plan, each)
        self.private_result = None  # an earlier call's says less than is spent from here on
        companion = TrainerCompanion(self, folder, num_steps=num_steps, steps_per_epoch=each)
        self.is_in_train = True
        before = versions(self._trained)
        try:
            self.private_result = (
                self._resume(folder, dataset, loss, companion)
                if going_on
                else self._begin(folder, plan, about, dataset, loss, companion)
            )
        finally:
            self.is_in_train = False
            if (companion.began or versions(self._trained) != before) and was_spent(folder):
                remember(self._trained, folder, rows=rows)
        result = self.private_result
        self.state.global_step = result.num_steps
        write_report(folder)
        metrics = {"train_runtime": result.seconds, **spent(result.epsilon)}
        companion.ended(dict(metrics))
        return TrainOutput(result.num_steps, companion.mean_loss, metrics)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As in `Trainer`, on PUBLIC rows: the scores are logged, and nothing protects them.

        Args:
            eval_dataset: rows, or several of them by name; by default those of the trainer.
            ignore_keys: as in `Trainer`.
            metric_key_prefix: as in `Trainer`.

        Returns:
            The scores by name.

        Raises:
            ConfigError[trainer-rows]: they are the rows that this trainer is to train on, or has trained on.
        """
        given = self.eval_dataset if eval_dataset is None or isinstance(eval_dataset, str) else eval_dataset
        refuse_private_scores([*self._private_rows, self.train_dataset], given)
        return super().evaluate(cast(Any, eval_dataset), ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """As in `Trainer`, on PUBLIC rows: nothing protects what the model says of them.

        Args:
            test_dataset: rows.
            ignore_keys: as in `Trainer`.
            metric_key_prefix: as in `Trainer`.

        Returns:
            Predictions, labels and scores.

        Raises:
            ConfigError[trainer-rows]: as `evaluate`.
        """
        refuse_private_scores([*self._private_rows, self.train_dataset], test_dataset, name="test_dataset")
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def evaluate_for_callbacks(self) -> dict[str, float]:
        """Evaluate in the middle of training, and keep the best metric for callbacks."""
        metrics = self.evaluate(ignore_keys=self._ignored_for_eval)
        self._determine_best_metric(metrics=metrics, trial=None)
        return metrics

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: every trial reads the private data.

        Raises:
            ConfigError[trainer-argument]: always.
        """
        raise ConfigError(
            "hyperparameter_search trains on the private data many times, and its cost is in no ledger: use "
            "`reticent sweep`, which accounts for the choice.",
            code="trainer-argument",
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As in `Trainer`, with a model card that carries the ledger's privacy statement."""
        super()._save(output_dir, state_dict)
        if self.private_result is not None:
            write_card(self.private_result.run, Path(output_dir or self.args.output_dir or ""))

    @property
    def _trained(self) -> Any:
        """The model, whose type in `Trainer` is any of many."""
        return self.model

    @property
    def _stepped(self) -> Any:
        """The optimizer, likewise."""
        return self.optimizer

    def _refuse_unused(self) -> None:
        """Refuse what would be ignored, as when the trainer was made: it may have been set since."""
        check_arguments(self.args, self._uses, usual=self._usual)
        _refuse_overridden(self)
        refuse_unheard(self.callback_handler.callbacks)

    def _rows_and_loss(self) -> tuple[Any, Callable[[nn.Module, Any], Tensor], bytes]:
        """Rows or users, their loss, and a digest of the rows."""
        data: Any = self.train_dataset
        privacy = self.privacy
        if data is None or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            raise ConfigError(
                "train_dataset must have a length and items by index: a stream cannot be sampled by Poisson.",
                code="trainer-argument",
            )
        users = None if privacy.user_column is None else users_of(data, privacy.user_column)
        collate = fixed_length(self.data_collator, privacy.max_length)
        own_loss = self._loss_per_example is not None
        problem = row_check(
            self._trained, self.data_collator, max_length=privacy.max_length, own_loss=own_loss
        )
        collate = self._get_collator_with_removed_columns(collate, description="training")
        rows = CollatedRows(data, collate, seed=self.args.seed, problem=problem)
        digest = rows.check()
        loss = self._loss_per_example
        if loss is None:
            loss = per_example_loss(self._trained, label_smoothing=self.args.label_smoothing_factor)
        elif self.args.label_smoothing_factor:
            raise ConfigError(
                "label_smoothing_factor would be ignored: loss_per_example is yours.", code="trainer-argument"
            )
        if self.args.bf16:
            loss = _in_half(loss)
        if users is None or privacy.rows_per_user is None:
            return rows, loss, digest
        return UserRows(rows, users, max_rows=privacy.rows_per_user), over_users(loss), digest

    def _prepare(self, plan: Plan, steps_per_epoch: int) -> None:
        """Optimizer, checkpointing of activations and a new state, as `Trainer` makes them."""
        args = self.args
        if args.activation_checkpointing:
            given: dict[str, Any] = _settings(args.activation_checkpointing_kwargs)
            layers = {name: given.pop(name) for name in ("every_n_layers", "offload") if name in given}
            self._trained.activation_checkpointing_enable(
                activation_checkpointing_kwargs=given or None, **layers
            )
        self._trained.train()
        self.create_optimizer()
        stateful: Any = [
            callback
            for callback in (*self.callback_handler.callbacks, self.control)
            if isinstance(callback, ExportableState)
        ]
        state = TrainerState(stateful_callbacks=stateful)
        state.train_batch_size = args.per_device_train_batch_size
        state.compute_steps(args, plan.num_steps)
        state.max_steps = plan.num_steps
        state.num_train_epochs = math.ceil(plan.num_steps / steps_per_epoch)
        state.is_local_process_zero = state.is_world_process_zero = True
        self.state = state
        for name in ("model", "optimizer"):
            setattr(self.callback_handler, name, getattr(self, name))

    def _begin(
        self,
        folder: Path,
        plan: Plan,
        about: Mapping[str, Any],
        dataset: Any,
        loss: Any,
        companion: TrainerCompanion,
    ) -> TrainResult:
        config = {"model": type(self.model).__name__, **about, **noted(self.privacy)}
        return train(
            self._trained,
            self._stepped,
            plan=plan,
            dataset=dataset,
            loss_per_example=loss,
            out=folder,
            settings=TrainSettings(
                seed=self.args.seed,
                checkpoint_every=0,
                low_memory=self.privacy.low_memory,
                show_loss=self.privacy.show_loss,
                show_norms=self.privacy.show_norms,
            ),
            physical_batch_size=self.args.per_device_train_batch_size,
            noise_seed=self.privacy.noise_seed,
            description=RunDescription(config=config, data={"name": "train_dataset of a Trainer"}),
            companion=companion,
        )

    def _resume(self, folder: Path, dataset: Any, loss: Any, companion: TrainerCompanion) -> TrainResult:
        return resume(
            self._trained,
            self._stepped,
            dataset=dataset,
            loss_per_example=loss,
            out=folder,
            physical_batch_size=self.args.per_device_train_batch_size,
            companion=companion,
        )


def refuse_private_scores(private: Sequence[Any], scored: Any, *, name: str = "eval_dataset") -> None:
    """Refuse private rows as rows to score on: `Trainer` takes several, one of which may be they.

    Args:
        private: data sets whose rows are private; None: no data set.
        scored: a data set, or several by name.
        name: of the argument that they were given as.

    Raises:
        ConfigError[trainer-rows]: as said.
    """
    for given in scored.values() if isinstance(scored, dict) else [scored]:
        if any(_same_rows(given, mine) for mine in private):
            raise ConfigError(
                f"{name} holds the train_dataset: scores of private rows would be logged and written "
                "down as those of public ones, and ε does not cover them. Give other rows.",
                code="trainer-rows",
            )


def _same_rows(one: Any, other: Any) -> bool:
    """Whether they are one object, or tables of `datasets` with one name for what they hold."""
    if one is None or other is None:
        return False
    made = getattr(one, "_fingerprint", None)
    return one is other or (made is not None and made == getattr(other, "_fingerprint", None))


def users_of(dataset: Any, column: str) -> list[Any]:
    """Whose each row is.

    Raises:
        DataError[data-column]: rows have no such column, or no columns by name.
    """
    found = []
    for k in range(len(dataset)):
        row = dataset[k]
        if not isinstance(row, Mapping) or column not in row:
            has = (
                ", ".join(map(str, row))
                if isinstance(row, Mapping)
                else f"none: it is a {type(row).__name__}"
            )
            raise DataError(
                f"Row {k} of train_dataset has no column '{column}', which PrivacyArguments(user_column=...) "
                f"names. Its columns: {has}.",
                code="data-column",
            )
        found.append(row[column])
    return found


def _refuse_overridden(trainer: Trainer) -> None:
    kind = type(trainer)
    for name in sorted(NOT_CALLED):
        if name in vars(trainer) or getattr(kind, name, None) is not getattr(Trainer, name, None):
            raise ConfigError(
                f"{kind.__name__}.{name} is never called by private training, if by evaluation. A loss "
                "of your own goes in as PrivateTrainer(loss_per_example=...), what is done with a row into "
                "the data set or the collator, what happens around steps into callbacks.",
                code="trainer-argument",
            )


def _settings(given: Any) -> dict[str, Any]:
    """A field that may be a dict or None; text was read by `TrainingArguments`."""
    return dict(given or {})


def _in_half(loss: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    def in_half(model: nn.Module, rows: Any) -> Tensor:
        with torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16):
            return loss(model, rows)

    return in_half
