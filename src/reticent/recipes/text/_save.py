"""A trained model in the Hugging Face format: the whole model, and the adapters if it has some.

Room: recipes.text. Imports torch, and peft where a model has adapters.

    RUN/model/      config, weights (safetensors) and tokenizer, for `from_pretrained` of transformers
    RUN/adapter/    the adapters alone, for `PeftModel.from_pretrained`, where there are any

The model cards in both are written by `reticent.report`, from the ledger.
"""

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

MODEL, ADAPTER = "model", "adapter"


def save_model(model: Any, tokenizer: Any, folder: Path, *, base: str | None = None) -> dict[str, str]:
    """Save a model of transformers, or of peft, and its tokenizer under a run's folder.

    Args:
        model: what was trained. Adapters are merged into a copy for `model/`, so `model` stays as it is.
        tokenizer: its tokenizer.
        folder: the run's folder.
        base: public name of the pretrained model that adapters need, kept in their configuration instead
            of a path of this machine; None: left as it is.

    Returns:
        `model`, and `adapter` where there is one: folder names inside `folder`.

    Guarantee:
        A folder is complete or not there: it is made beside and renamed, whatever is killed when.
    """
    saved = {}
    if _is_adapted(model):
        _whole(folder / ADAPTER, lambda part: _save_adapter(model, tokenizer, part, base))
        saved[ADAPTER] = ADAPTER
    _whole(folder / MODEL, lambda part: _save_whole(merged(model), tokenizer, part))
    return {MODEL: MODEL, **saved}


def merged(model: Any) -> Any:
    """The model with its adapters added into its weights, as a copy; a model without adapters as it is.

    Weights that are not finite stay so: a run that diverged ends all the same, and who loads it is told.
    """
    if not _is_adapted(model):
        return model
    from peft.utils import ModulesToSaveWrapper

    found = copy.deepcopy(model)
    for name, part in list(found.named_modules()):
        if isinstance(part, ModulesToSaveWrapper):  # of which peft's IA3 puts back single layers only
            parent, _, last = name.rpartition(".")
            setattr(found.get_submodule(parent), last, part.modules_to_save[part.active_adapters[0]])
    return found.merge_and_unload()


def _is_adapted(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def _save_whole(model: nn.Module, tokenizer: Any, part: Path) -> None:
    model.save_pretrained(part)  # pyright: ignore[reportCallIssue]
    tokenizer.save_pretrained(part)


def _save_adapter(model: Any, tokenizer: Any, part: Path, base: str | None) -> None:
    configs = list(model.peft_config.values())
    names = [config.base_model_name_or_path for config in configs]
    try:
        for config in configs:
            config.base_model_name_or_path = base or config.base_model_name_or_path
        model.save_pretrained(part, save_embedding_layers=False)
    finally:
        for config, name in zip(configs, names, strict=True):
            config.base_model_name_or_path = name
    tokenizer.save_pretrained(part)


def _whole(target: Path, write: Callable[[Path], None]) -> None:
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    write(part)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(part, target)
    shutil.rmtree(old, ignore_errors=True)
