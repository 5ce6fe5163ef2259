"""Whether a call of `train` goes on with a run, and whether it does so with the settings that run has.

Room: hf. May import `reticent.{plan,train,errors}`; no torch of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from transformers import TrainingArguments

from reticent.errors import ConfigError
from reticent.plan import ROW, Plan

from ._privacy import PrivacyArguments

# Of `TrainingArguments`: a resumed optimizer has them from its checkpoint, whatever it was made with.
_OF_THE_OPTIMIZER: Final = ("optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")


def goes_on(resume_from_checkpoint: str | bool | None, folder: Path) -> bool:
    """Whether a call goes on with the run in `folder`.

    Raises:
        ConfigError[out-exists]: it does not, and the folder holds something.
        ConfigError[trainer-resume]: it would go on with a run in another folder.
    """
    if not resume_from_checkpoint:
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(
                f"'{folder}' is not empty, and a private run never writes over another. Choose another "
                "output_dir, or go on with the run: train(resume_from_checkpoint=True).",
                code="out-exists",
            )
        return False
    if resume_from_checkpoint is not True and Path(resume_from_checkpoint).resolve() != folder.resolve():
        raise ConfigError(
            f"resume_from_checkpoint must be True, or output_dir ('{folder}'): a run goes on where its "
            "ledger is.",
            code="trainer-resume",
        )
    return True


def noted(privacy: PrivacyArguments) -> dict[str, Any]:
    """What `run.json` keeps of `PrivacyArguments` beside the plan and the settings of the run."""
    people = {"user_column": privacy.user_column, "rows_per_user": privacy.rows_per_user}
    return {
        **(people if privacy.user_column is not None else {}),
        **({"other_data": True} if privacy.other_data else {}),
    }


def check_same_run(
    folder: Path,
    about: Mapping[str, Any],
    plan: Plan,
    *,
    args: TrainingArguments,
    chosen: Mapping[str, Any],
    privacy: PrivacyArguments,
) -> None:
    """Refuse to go on with a run under other settings, which would be ignored, or would break its claim.

    Args:
        folder: of the run.
        about: its `run.json`.
        plan: that follows from the arguments and the rows.
        args: of the trainer.
        chosen: what a description keeps of `args`.
        privacy: of the trainer.

    Raises:
        ConfigError[trainer-resume]: names the settings in question.
    """
    if about["plan"] != plan.describe():
        raise ConfigError(
            f"The run in '{folder}' has another plan than these arguments and this train_dataset give: go on "
            "with the same ones (batch sizes, steps, epsilon, rows).",
            code="trainer-resume",
        )
    config, settings = about["config"], about["settings"]
    if plan.unit != ROW and "user_column" not in config:
        raise ConfigError(
            f"The run in '{folder}' is of an older version, which did not note whose rows are whose: by "
            "another column the guarantee would be nobody's. If you know what it began with, add "
            '"user_column" and "rows_per_user" to "config" in its run.json.',
            code="trainer-resume",
        )
    now = {
        "seed": args.seed,
        "show_loss": privacy.show_loss,
        "show_norms": privacy.show_norms,
        "noise_seed": privacy.noise_seed,
    }
    pairs = [(name, settings.get(name), value) for name, value in now.items()]
    mine = noted(privacy)
    pairs += [(name, config.get(name), mine.get(name)) for name in ("user_column", "rows_per_user")]
    pairs += [("other_data", config.get("other_data", False), privacy.other_data)]
    pairs += [("low_memory", settings.get("low_memory", False), privacy.low_memory)]
    pairs += [(name, config.get(name), chosen.get(name)) for name in _OF_THE_OPTIMIZER]
    wrong = [f"{name} = {_said(began)}, now {_said(value)}"
             for name, began, value in pairs if began != value]  # fmt: skip
    if wrong:
        raise ConfigError(
            f"The run in '{folder}' began with other settings: {'; '.join(wrong)}. A run goes on as it "
            "began: give it the same ones, or begin a new run in another output_dir, with public weights.",
            code="trainer-resume",
        )


def _said(value: Any) -> str:
    return "the default" if value is None else repr(value)
