"""Every field of `TrainingArguments`: honoured, without meaning here, or refused by name.

Room: hf. Imports transformers.

The table was made for transformers 5.23. A field that it does not know (of another version, or of a
subclass of `TrainingArguments`) is refused unless it has its default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final, Literal

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from reticent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Use:
    """What becomes of a field.

    Args:
        kind: "supported": does what transformers says. "harmless": has nothing to act on in a private run in
            one process, or acts outside training. "refused": any other value than the default raises.
        why: for what is refused, the reason; else how it is read, where that needs words.
    """

    kind: Literal["supported", "harmless", "refused"]
    why: str = ""


def _refused(why: str, *names: str) -> dict[str, Use]:
    return {name: Use("refused", why) for name in names}


def _supported(*names: str, **notes: str) -> dict[str, Use]:
    return {name: Use("supported", notes.get(name, "")) for name in (*names, *notes)}


_ONE_PROCESS: Final = "private training runs in one process on one device"
_NO_HUB: Final = "nothing is pushed while a run goes on: call save_model, then upload the folder"
_SAME_CHECKPOINT: Final = (
    "a checkpoint always holds what a resumed run needs: weights, optimizer, place in the ledger"
)

FIELDS: Final[Mapping[str, Use]] = MappingProxyType(
    {
        **_supported(
            output_dir="the run's folder: ledger, checkpoints, weights, report; new or empty",
            per_device_train_batch_size="rows (users) that go through the model at once",
            gradient_accumulation_steps="times the above: rows (users) expected in a step; Poisson drawn",
            num_train_epochs="steps = epochs x ceil(rows / expected batch)",
            max_steps="the plan's number of steps",
            lr_scheduler_type="every schedule that is a function of the step",
            optim="adamw_torch, adamw_torch_fused, sgd, adagrad, rmsprop; they see the noised gradient",
            bf16="autocast of forward and backward; norms and sums stay float32",
            activation_checkpointing="the same numbers, in less memory",
            gradient_checkpointing="the old name of activation_checkpointing",
            logging_steps="the learning rate and epsilon so far; the loss only with show_loss",
            save_strategy="no, steps or epoch; the first and the last weights are always kept",
            save_total_limit="None or 2: the last two checkpoints are kept",
            seed="of dropout, and of what a collator draws; never of noise and sampling",
            metric_for_best_model="read by callbacks, e.g. early stopping, on the public eval_dataset",
        ),
        **_supported(
            "learning_rate", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1",
            "adam_beta2", "adam_epsilon", "label_smoothing_factor", "activation_checkpointing_kwargs",
            "gradient_checkpointing_kwargs", "use_cache", "logging_strategy", "logging_first_step",
            "log_level", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id",
            "trackio_bucket_id", "trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay",
            "per_device_eval_batch_size", "prediction_loss_only", "eval_do_concat_batches",
            "eval_accumulation_steps", "include_for_metrics",
            "batch_eval_metrics", "save_steps", "greater_is_better", "use_cpu", "remove_unused_columns",
            "label_names",
        ),
        **{
            name: Use("harmless", why)
            for why, names in {
                "there is one process": (
                    "average_tokens_across_devices", "log_on_each_node", "log_level_replica",
                    "save_on_each_node", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
                    "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout",
                    "local_rank", "eval_use_gather_object",
                ),
                "the loss of a training step is not logged": ("logging_nan_inf_filter",),
                "training rows are fetched in this process, evaluation rows as it says": (
                    "dataloader_num_workers", "dataloader_pin_memory",
                    "dataloader_persistent_workers", "dataloader_prefetch_factor",
                    "dataloader_multiprocessing_context", "dataloader_in_order",
                ),
                "read by scripts, not by a Trainer": (
                    "do_train", "do_eval", "do_predict", "resume_from_checkpoint",
                ),
            }.items()
            for name in names
        },
        **_refused(
            "each row's gradient is clipped, to PrivacyArguments(max_norm=...); the batch's is not",
            "max_grad_norm",
        ),
        **_refused(
            "float16 needs a loss scale, which would change the clipping; use bf16",
            "fp16",
        ),
        **_refused("it changes the model's weights to half precision in place", "bf16_full_eval",
        "fp16_full_eval"), **_refused("gradient norms are measured in full float32", "tf32"),
        **_refused(
            "per-example gradients are not taken through it",
            "torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel",
            "liger_kernel_config",
        ),
        **_refused("it adds noise of its own to embeddings, through hooks", "neftune_noise_alpha"),
        **_refused(
            "the physical batch size is per_device_train_batch_size; out of memory, it is halved anyway",
            "auto_find_batch_size", "torch_empty_cache_steps",
        ),
        **_refused("tokens of private rows would be counted and shown", "include_num_input_tokens_seen"),
        **_refused("it would evaluate before the run has a folder: call evaluate() first", "eval_on_start"),
        **_refused(_SAME_CHECKPOINT, "save_only_model", "enable_jit_checkpoint"),
        **_refused(
            "weights of an earlier step are not kept; lower max_steps instead", "load_best_model_at_end"
        ),
        **_refused(
            _NO_HUB,
            "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy",
            "hub_always_push", "hub_revision",
        ),
        **_refused("a resumed run draws anew; no row is skipped", "ignore_data_skip"),
        **_refused("callbacks begin anew in a resumed run", "restore_callback_states_from_checkpoint"),
        **_refused("noise and sampling come from the operating system", "full_determinism", "data_seed"),
        **_refused(
            _ONE_PROCESS, "accelerator_config", "parallelism_config", "fsdp", "fsdp_config", "deepspeed"
        ),
        **_refused(
            "steps are Poisson samples: rows are drawn one by one, whatever their length",
            "dataloader_drop_last", "train_sampling_strategy", "length_column_name",
        ),
        **_refused(
            "optimizers are those of `optim` with the arguments above, or `optimizers=(yours, None)`",
            "optim_args", "optim_target_modules",
        ),
        **_refused("its hooks would see gradients without noise", "debug"),
        **_refused("memory is not measured here", "skip_memory_metrics"),
    }
)  # fmt: skip

_OPTIMIZERS: Final = (
    OptimizerNames.ADAMW_TORCH,
    OptimizerNames.ADAMW_TORCH_FUSED,
    OptimizerNames.SGD,
    OptimizerNames.ADAGRAD,
    OptimizerNames.RMSPROP,
)


def usual_of(args: TrainingArguments) -> TrainingArguments:
    """Every field at its default, in the same place and on the same device.

    Making one resets what `Trainer` sets up in the process, so a trainer makes it before it does that.
    """
    return TrainingArguments(output_dir=args.output_dir, use_cpu=args.use_cpu)


def check_arguments(
    args: TrainingArguments, uses: Mapping[str, Use] = FIELDS, *, usual: TrainingArguments | None = None
) -> None:
    """Refuse what a private run would ignore or could not do, all of it at once.

    Args:
        args: of a trainer.
        uses: what becomes of each field; those of subclasses may be named beside `FIELDS`.
        usual: what `usual_of` made of them; by default it is made here.

    Raises:
        ConfigError[trainer-argument]: lists every field that is refused, with the reason.
    """
    problems = refused_fields(args, uses, unknown=True, usual=usual) + _bad_values(args)
    if problems and type(args).__name__ == "SFTConfig" and uses is FIELDS:
        problems.append("an SFTConfig goes with reticent.hf.PrivateSFTTrainer")
    if problems:
        raise ConfigError(
            "TrainingArguments that private training does not support: " + "; ".join(problems) + ".",
            code="trainer-argument",
        )


def refused_fields(
    args: TrainingArguments,
    uses: Mapping[str, Use],
    *,
    unknown: bool = False,
    usual: TrainingArguments | None = None,
) -> list[str]:
    """Fields that are refused and not at their defaults, each with the reason.

    Args:
        args: of a trainer.
        uses: what becomes of each field.
        unknown: whether fields that `uses` does not have are refused too.
        usual: as in `check_arguments`.
    """
    usual = usual or usual_of(args)
    known = {field.name for field in fields(TrainingArguments)}
    problems = []
    for field in fields(args):
        use = uses.get(field.name)
        if use is None and unknown:
            use = Use("refused", "it is not known to this version of Reticent")
        if use is None or use.kind != "refused":
            continue
        value = getattr(args, field.name)
        default = getattr(usual, field.name) if field.name in known else field.default
        if default == "auto" and value is None:  # what a subclass makes of it
            continue
        if value != default and not (field.name == "max_grad_norm" and not value):
            problems.append(f"{field.name}: {use.why}")
    return problems


def chosen(
    args: TrainingArguments, uses: Mapping[str, Use] = FIELDS, *, usual: TrainingArguments | None = None
) -> dict[str, Any]:
    """Supported fields that are not at their defaults, as JSON: what a run's description keeps."""
    usual = usual or usual_of(args)
    defaults = {field.name: field.default for field in fields(args)}
    found = {}
    for name, use in uses.items():
        value = getattr(args, name, None)
        if use.kind == "supported" and name != "output_dir":
            if value != getattr(usual, name, defaults.get(name)):
                found[name] = value if isinstance(value, int | float | str | None) else str(value)
    return found


def _bad_values(args: TrainingArguments) -> list[str]:
    """Values that a supported field may not have."""
    problems = []
    if args.n_gpu > 1 or args.world_size > 1:
        problems.append(f"{args.n_gpu} devices, {args.world_size} processes: {_ONE_PROCESS}")
    if args.optim not in _OPTIMIZERS:
        problems.append(f"optim = {OptimizerNames(args.optim).value}: {FIELDS['optim'].why}")
    schedule = SchedulerType(args.lr_scheduler_type)
    if schedule in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
        problems.append(f"lr_scheduler_type = {schedule.value}: no function of the step alone")
    if args.save_strategy == SaveStrategy.BEST:
        problems.append("save_strategy = best: checkpoints are for resuming, not for choosing")
    if args.save_total_limit not in (None, 2):
        problems.append(f"save_total_limit = {args.save_total_limit}: {FIELDS['save_total_limit'].why}")
    return problems
