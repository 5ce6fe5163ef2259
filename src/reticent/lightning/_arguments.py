"""Every argument of Lightning's `Trainer`: honoured, without meaning here, or refused by name.

Room: lightning. Imports lightning.

The table was made for lightning 2.6. An argument that it does not know, of another version, is refused unless
it has its default.
"""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy

from reticent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Use:
    """What becomes of an argument.

    Args:
        kind: "supported": does what Lightning says. "harmless": has nothing to act on in private training.
            "refused": any other value than the default raises.
        why: for what is refused, the reason; else how it is read, where that needs words.
    """

    kind: Literal["supported", "harmless", "refused"]
    why: str = ""


def _refused(why: str, *names: str) -> dict[str, Use]:
    return {name: Use("refused", why) for name in names}


_PRECISION: Final = (
    "only 32-true and bf16-mixed; float16 needs a loss scale, which would change the clipping, and others "
    "change the model's weights"
)
_ONE_PROCESS: Final = (
    "private training runs in one process on one device here; for several see docs/distributed.md"
)

ARGUMENTS: Final[Mapping[str, Use]] = MappingProxyType(
    {
        **{
            name: Use("supported", why)
            for name, why in {
                "accelerator": "",
                "devices": "one",
                "precision": "32-true, bf16-mixed: autocast of the loss; norms and sums stay float32",
                "logger": "nothing of training rows is logged; epsilon so far is, every log_every_n_steps",
                "callbacks": "but for hooks around gradients, and those that change training or measure it",
                "max_epochs": "an epoch is 1 / sampling_prob steps, rounded up",
                "max_steps": "by default the plan's; at most the plan's",
                "max_time": "what is left of the plan stays unspent",
                "limit_val_batches": "",
                "limit_test_batches": "",
                "limit_predict_batches": "",
                "val_check_interval": "",
                "check_val_every_n_epoch": "",
                "num_sanity_val_steps": "",
                "log_every_n_steps": "",
                "enable_checkpointing": "checkpoints of Lightning; they know their place in the ledger",
                "enable_progress_bar": "",
                "enable_model_summary": "",
                "deterministic": "of torch's kernels; never of noise and sampling",
                "benchmark": "",
                "inference_mode": "",
                "default_root_dir": "Lightning's own files; the run's are in `out`",
                "enable_autolog_hparams": "",
                "model_registry": "",
            }.items()
        },
        "use_distributed_sampler": Use("harmless", "there is one process"),
        **_refused(_ONE_PROCESS, "strategy", "num_nodes", "sync_batchnorm"),
        **_refused(
            "each row's gradient is clipped, to the plan's norm; the batch's is not",
            "gradient_clip_val",
            "gradient_clip_algorithm",
        ),
        **_refused(
            "a step takes the plan's whole batch, in chunks of physical_batch_size",
            "accumulate_grad_batches",
        ),
        **_refused(
            "rows are drawn by Poisson sampling from all of the data set, which a cut data set is not: cut "
            "the data set, and make a plan for its size",
            "limit_train_batches",
            "overfit_batches",
        ),
        **_refused(
            "it would take a private step and keep nothing of it; try on made-up rows, in another `out`",
            "fast_dev_run",
        ),
        **_refused("a plan has no fewest steps: it may be left at any time", "min_epochs", "min_steps"),
        **_refused(
            "the data set stays the same; a run on other rows has another ledger",
            "reload_dataloaders_every_n_epochs",
        ),
        **_refused("the time of a step tells how many rows were drawn", "profiler"),
        **_refused("one row's NaN would stop the run; here that row counts as zero", "detect_anomaly"),
        **_refused("it turns off checkpoints and logs, of which none is slow here", "barebones"),
        **_refused("a plugin may scale, clip or spread gradients", "plugins"),
    }
)
_FROM_OUTSIDE: Final = ("PL_TRAINER_", "PL_PRIVATETRAINER_")  # names of variables that Lightning reads
_WITH_A_DEFAULT: Final = {
    name: parameter.default
    for name, parameter in inspect.signature(Trainer.__init__).parameters.items()
    if parameter.default is not inspect.Parameter.empty
}


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse what private training would ignore or could not do, all of it at once.

    Raises:
        ConfigError[lightning-argument]: lists every argument that is refused, with the reason.
    """
    problems = []
    for name, value in given.items():
        use = ARGUMENTS.get(name, Use("refused", "it is not known to this version of Reticent"))
        allowed = name in _WITH_A_DEFAULT and _same(name, value)
        if use.kind == "refused" and not allowed:
            problems.append(f"{name}: {use.why}")
    precision = given.get("precision")
    if precision not in (None, 32, "32", "32-true", "bf16", "bf16-mixed"):
        problems.append(f"precision = {precision!r}: {_PRECISION}")
    problems += [
        f"{name}: the environment sets nothing here" for name in os.environ if name.startswith(_FROM_OUTSIDE)
    ]
    if problems:
        raise ConfigError(
            "Arguments of Trainer that private training does not support: " + "; ".join(problems) + ".",
            code="lightning-argument",
        )


def check_made(trainer: Trainer) -> None:
    """Refuse a trainer that came out with several devices, or a precision that scales or rounds weights.

    Raises:
        ConfigError[lightning-argument]: says what it is.
    """
    problems = []
    plain = type(trainer.strategy) is SingleDeviceStrategy and trainer.world_size == 1
    if not plain or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        problems.append(
            f"strategy {type(trainer.strategy).__name__} on {trainer.num_devices} devices: {_ONE_PROCESS}, "
            "or give devices=1"
        )
    plugin = trainer.precision_plugin
    half = type(plugin) is MixedPrecision and plugin.precision == "bf16-mixed" and plugin.scaler is None
    if not half and type(plugin) is not Precision:
        problems.append(f"precision = {plugin.precision!r}: {_PRECISION}")
    if problems:
        raise ConfigError("; ".join(problems) + ".", code="lightning-argument")


def _same(name: str, value: Any) -> bool:
    """Whether an argument has its default, or means the same: all of the training data."""
    if name == "limit_train_batches" and isinstance(value, float) and value == 1.0:
        return True
    default = _WITH_A_DEFAULT[name]
    return value is default or (isinstance(value, bool | int | float | str) and value == default)
