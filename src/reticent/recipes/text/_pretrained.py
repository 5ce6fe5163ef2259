"""Folders of pretrained models by name, in the form that transformers loads.

Room: recipes.text. Imports transformers when a model must be converted, huggingface_hub for a hub's.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

from reticent.data import cached_folder, fetch_pretrained, pretrained_names, pretrained_note
from reticent.errors import ConfigError

from ._packages import missing

_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Configuration, tokenizer and safetensors: no code and no pickles.
_HUB_FILES: Final = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def pretrained_folder(name: str, *, report: Any = None) -> Path:
    """A model's folder: one of the operator's own, a known model, or the Hugging Face Hub's, fetched once.

    Args:
        name: a folder with `config.json`, one of `reticent.data.pretrained_names()`, or a name on the Hub; of
            that, files of configuration, tokenizer and safetensors are taken, no code and no pickles.
        report: called with each line about fetching.

    Raises:
        ConfigError[text-model]: none of these, or the Hub does not have it or cannot be reached.
        ConfigError[missing-library]: the model must be converted, and gguf is not installed.
        DataError: it cannot be fetched.
    """
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if name not in pretrained_names():
        if Path(name).exists() or not _HUB_NAME.fullmatch(name):
            raise _unknown(name)
        return _from_hub(name)
    found = fetch_pretrained(name, report=report)
    if found.suffix != ".gguf":
        return found
    return cached_folder(
        f"{name}-hf", f"{found} as float32", lambda folder: _from_gguf(found, folder), report=report
    )


def tell_note(name: str, report: Callable[[str], None]) -> None:
    """Say what a person who publishes a figure of a known model should know of it."""
    if note := pretrained_note(name):
        report(f"model = {name}: {note}")


def with_note(about: dict[str, Any], name: str) -> dict[str, Any]:
    """The same of a run's data, and of its known model what `tell_note` says."""
    note = pretrained_note(name)
    return {**about, "model_note": f"{name}: {note}"} if note else about


def _unknown(name: str, why: str = "") -> ConfigError:
    return ConfigError(
        f"'{name}' is neither a folder with a config.json nor a known model. Known: "
        f"{', '.join(pretrained_names())}.{why}",
        code="text-model",
    )


@cache
def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise missing("huggingface_hub", f"Fetching '{name}'", extra="text") from error
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, OSError) as e:
        first = str(e).strip().partition("\n")[0]
        raise _unknown(
            name,
            f" It was looked for on the Hugging Face Hub too: {first} Where that cannot be reached, run `hf "
            f"download {name} --local-dir FOLDER` elsewhere, bring the folder here, and set model = FOLDER.",
        ) from e
    if not (folder / "config.json").is_file():
        raise _unknown(name, " The Hugging Face Hub has a model of this name, without a config.json.")
    return folder


def _from_gguf(file: Path, folder: Path) -> None:
    """A plain folder in float32 from a GGUF file; the weights are those of its rounding."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise missing("gguf", f"Reading {file.name}", extra="text") from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    # The loaded model refuses to be saved, being "quantized": its numbers go into a plain one.
    settings = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "dtype")}
    plain = type(read)(type(read.config)(**settings))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
