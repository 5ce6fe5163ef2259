"""`PrivateSFTTrainer`: supervised fine-tuning as TRL's `SFTTrainer` does it, whose training is private.

Room: hf. Imports transformers, and trl when a trainer is made; may import torch and every room below.

TRL prepares rows one by one (chat template, end of text, tokens, which of them are labels); its own function
does so here. What it does with several rows at once, packing and rows without padding, is refused.

The table was made for trl 1.16.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar, Final

from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from reticent.errors import ConfigError, DataError

from ._fields import FIELDS, Use, refused_fields
from ._privacy import PrivacyArguments
from ._trainer import PrivateTrainer, refuse_private_scores

_ON_TOKENIZER: Final = "set it on the tokenizer, and give that as processing_class"
_ON_MODEL: Final = "the model is given made: load it with from_pretrained(...)"
_ROWS_SHARED: Final = "rows of several people would share one sequence, and one row's influence has no bound"

SFT_FIELDS: Final[Mapping[str, Use]] = MappingProxyType(
    {
        "dataset_text_field": Use("supported"),
        "dataset_num_proc": Use("supported"),
        "max_length": Use("supported", "longer rows are cut, and every row is padded to it: not None"),
        "truncation_mode": Use("supported"),
        "completion_only_loss": Use("supported", "a row without any label counts, with loss zero"),
        "assistant_only_loss": Use("supported"),
        "loss_type": Use("supported", "nll, the mean over each row's own labels"),
        "shuffle_dataset": Use("harmless", "rows are drawn at random, whatever their order"),
        "model_init_kwargs": Use("refused", _ON_MODEL),
        "trust_remote_code": Use("refused", _ON_MODEL),
        "router_aux_loss_coef": Use("refused", "a balance over the tokens of a batch couples its rows"),
        "chat_template_path": Use("refused", _ON_TOKENIZER),
        "eos_token": Use("refused", _ON_TOKENIZER),
        "pad_token": Use("refused", _ON_TOKENIZER),
        "dataset_kwargs": Use("refused", "rows are always prepared; input_ids are taken as they are"),
        "packing": Use("refused", _ROWS_SHARED),
        "packing_strategy": Use("refused", _ROWS_SHARED),
        "eval_packing": Use("refused", "evaluation rows are prepared as training rows are"),
        "padding_free": Use("refused", _ROWS_SHARED),
        "pad_to_multiple_of": Use("refused", "every row is padded to max_length"),
        "activation_offloading": Use(
            "refused", "it wraps Trainer's own training step, which is never called"
        ),
    }
)


class PrivateSFTTrainer(PrivateTrainer):
    """TRL's supervised fine-tuning: rows as `SFTTrainer` prepares them, steps as `PrivateTrainer` takes them.

        from trl import SFTConfig
        from reticent.hf import PrivacyArguments, PrivateSFTTrainer  # was: from trl import SFTTrainer

        trainer = PrivateSFTTrainer(
            model=model, args=SFTConfig(output_dir="runs/a", max_length=128), train_dataset=rows,
            processing_class=tokenizer, privacy=PrivacyArguments(target_epsilon=8.0),
        )
        trainer.train()

    Args:
        model: a causal language model of transformers, or of peft around one; not a name.
        args: TRL's `SFTConfig`; `reticent.hf.SFT_FIELDS` and `FIELDS` say what becomes of each field.
        train_dataset: the private rows, a `datasets.Dataset`: a text, prompt and completion, messages, or
            `input_ids` and maybe `labels`.
        eval_dataset: PUBLIC rows of the same kind.
        processing_class: the tokenizer.
        peft_config: what of the model is trained, as in TRL.
        formatting_func: row -> text, called for each row by itself.
        data_collator: refused: rows are padded to `max_length` by TRL's.
        callbacks: as in `PrivateTrainer`.
        optimizers: as in `PrivateTrainer`.
        compute_metrics: as in `Trainer`.
        preprocess_logits_for_metrics: as in `Trainer`.
        privacy: what the run may spend; its `max_length` is that of `args`.
        loss_per_example: as in `PrivateTrainer`.

    Guarantee:
        That of `PrivateTrainer`. How many rows take part does not depend on what is in them: TRL drops rows
        that truncation leaves without a label, and here they stay, with loss zero.

    Raises:
        ConfigError[trainer-argument]: an argument or a field has no place here.
        ConfigError[trainer-rows]: as `PrivateTrainer`.
        DataError[data-column]: `train_dataset` has no `user_column` of `privacy`.
    """

    _uses: ClassVar[Mapping[str, Use]] = MappingProxyType({**FIELDS, **SFT_FIELDS})

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        peft_config: Any = None,
        formatting_func: Callable[[Any], str] | None = None,
        data_collator: None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        compute_metrics: Any = None,
        preprocess_logits_for_metrics: Any = None,
        privacy: PrivacyArguments,
        loss_per_example: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        problems = []
        if not isinstance(args, SFTConfig):
            problems.append(f"args must be an SFTConfig, got {type(args).__name__}")
        else:
            problems += _bad_fields(args, privacy)
        if not isinstance(model, nn.Module):
            problems.append(f"model = {type(model).__name__}: {_ON_MODEL}")
        if data_collator is not None:
            problems.append("data_collator: rows are padded to max_length by TRL's own. Use PrivateTrainer")
        if getattr(processing_class, "pad_token_id", None) is None:
            problems.append("processing_class must be a tokenizer with a pad_token")
        if problems:
            raise ConfigError("PrivateSFTTrainer: " + "; ".join(problems) + ".", code="trainer-argument")
        refuse_private_scores([train_dataset], eval_dataset)
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        rows = [
            None
            if given is None
            else prepared(given, args, processing_class, formatting_func, user_column=column)
            for given, column in ((train_dataset, privacy.user_column), (eval_dataset, None))
        ]
        super().__init__(
            model=model,
            args=args,
            data_collator=DataCollatorForLanguageModeling(pad_token_id=processing_class.pad_token_id),
            train_dataset=rows[0],
            eval_dataset=rows[1],
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            privacy=replace(privacy, max_length=args.max_length),
            loss_per_example=loss_per_example,
        )
        self._private_rows.append(train_dataset)  # as they were given, beside what was made of them

    def _refuse_unused(self) -> None:
        problems = _bad_fields(self.args, self.privacy, usual=self._usual)
        if problems:
            raise ConfigError("PrivateSFTTrainer: " + "; ".join(problems) + ".", code="trainer-argument")
        super()._refuse_unused()


def prepared(
    dataset: Any,
    args: Any,
    tokenizer: Any,
    formatting_func: Callable[[Any], str] | None,
    *,
    user_column: str | None = None,
) -> Any:
    """Rows with `input_ids` and `labels`, at most `max_length` of them, as TRL's `SFTTrainer` makes them.

    Args:
        dataset: a `datasets.Dataset`.
        args: an `SFTConfig`.
        tokenizer: of the model.
        formatting_func: row -> text.
        user_column: is kept as it is given, to say whose a row is.

    Returns:
        As many rows as were given, in their order.

    Raises:
        ConfigError[trainer-argument]: not a table of `datasets`, or the settings do not fit its columns.
        DataError[data-column]: there is no `user_column`.
    """
    from datasets import Dataset
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers
    from trl.trainer.sft_trainer import SFTTrainer

    if not isinstance(dataset, Dataset):
        raise ConfigError(
            f"The rows must be a datasets.Dataset, got {type(dataset).__name__}: a stream cannot be sampled "
            "by Poisson.",
            code="trainer-argument",
        )
    _check_one_kind(dataset)
    _check_user_column(dataset, user_column)
    asks_completion = {"prompt", "completion"} <= set(dataset.column_names)
    only_completion = asks_completion if args.completion_only_loss is None else args.completion_only_loss
    if only_completion and formatting_func is not None:
        raise ConfigError(
            "completion_only_loss with a formatting_func: the text that it makes has no completion.",
            code="trainer-argument",
        )
    template = None
    if args.assistant_only_loss and not has_generation_markers(tokenizer.chat_template):
        template = get_training_chat_template(tokenizer)
    stand_in = SimpleNamespace(
        _tokenizer=tokenizer, chat_template=template, completion_only_loss=only_completion
    )
    uncut = copy.copy(args)
    uncut.max_length, uncut.shuffle_dataset = None, False  # TRL would drop rows after cutting them
    whole: Any = SFTTrainer._prepare_dataset(
        stand_in,  # pyright: ignore[reportArgumentType]
        dataset,
        tokenizer,
        uncut,
        False,
        formatting_func,
        "private",
    )
    if len(whole) != len(dataset):
        raise ConfigError(
            f"This version of TRL makes {len(whole)} rows of {len(dataset)}: a row must stay a row, as rows "
            "are what is protected.",
            code="trainer-argument",
        )
    keep = (
        slice(None, args.max_length)
        if args.truncation_mode == "keep_start"
        else slice(-args.max_length, None)
    )
    made = whole.map(_cut, fn_kwargs={"keep": (keep.start, keep.stop)}, remove_columns=whole.column_names)
    return made if user_column is None else made.add_column(user_column, list(dataset[user_column]))


def _check_user_column(dataset: Any, column: str | None) -> None:
    if column in ("input_ids", "labels"):
        raise ConfigError(
            f"PrivacyArguments(user_column='{column}'): it holds tokens, and no users. Name another.",
            code="trainer-argument",
        )
    if column is not None and column not in dataset.column_names:
        raise DataError(
            f"train_dataset has no column '{column}', which PrivacyArguments(user_column=...) names. Its "
            f"columns: {', '.join(dataset.column_names)}.",
            code="data-column",
        )


def _check_one_kind(dataset: Any) -> None:
    """Refuse messages that some rows do not have: TRL reads from the first row how all rows are meant."""
    for name in ("prompt", "completion", "messages", "conversations"):
        if name not in dataset.column_names:
            continue
        kinds = {type(value).__name__ if value else "nothing" for value in dataset[name]}
        if "list" in kinds and len(kinds) > 1:
            raise ConfigError(
                f"Column '{name}' has messages in some rows and none in others. One row may not decide how "
                "the others are read: leave out rows without messages before N is counted, or give texts.",
                code="trainer-argument",
            )


def _cut(row: dict[str, Any], keep: tuple[int | None, int | None]) -> dict[str, Any]:
    return {name: row[name][slice(*keep)] for name in ("input_ids", "labels")}


def _bad_fields(args: Any, privacy: PrivacyArguments, *, usual: TrainingArguments | None = None) -> list[str]:
    """Fields of TRL's own that are refused, and values that supported ones may not have."""
    problems = refused_fields(args, SFT_FIELDS, usual=usual)
    if args.max_length is None:
        problems.append(f"max_length = None: {SFT_FIELDS['max_length'].why}")
    if args.loss_type != "nll":
        problems.append(f"loss_type = {args.loss_type!r}: only {SFT_FIELDS['loss_type'].why}")
    if privacy.max_length not in (None, args.max_length):
        problems.append(
            f"PrivacyArguments(max_length={privacy.max_length}) beside SFTConfig's {args.max_length}"
        )
    return problems
