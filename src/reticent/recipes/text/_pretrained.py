"""Folders of pretrained models by name, in the form that transformers loads.

Room: recipes.text. Imports transformers when a model must be converted.
"""

from pathlib import Path
from typing import Any

from reticent.data import cached_folder, fetch_pretrained, pretrained_names
from reticent.errors import ConfigError

from ._packages import missing


def pretrained_folder(name: str, *, report: Any = None) -> Path:
    """A model's folder: one of the operator's own, or a known model, fetched once.

    Args:
        name: a folder with `config.json`, or one of `reticent.data.pretrained_names()`.
        report: called with each line about fetching.

    Raises:
        ConfigError[text-model]: neither a folder with a model nor a known name.
        ConfigError[missing-library]: the model must be converted, and gguf is not installed.
        DataError: it cannot be fetched.
    """
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if name not in pretrained_names():
        raise ConfigError(
            f"'{name}' is neither a folder with a config.json nor a known model. Known: "
            f"{', '.join(pretrained_names())}.",
            code="text-model",
        )
    found = fetch_pretrained(name, report=report)
    if found.suffix != ".gguf":
        return found
    return cached_folder(
        f"{name}-hf", f"{found} as float32", lambda folder: _from_gguf(found, folder), report=report
    )


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
