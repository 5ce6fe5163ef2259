"""A pretrained language model fine-tuned privately on one genre of the Brown corpus: held-out perplexity.

    python -m benchmarks.genre --model smollm2 --epsilon 8 --json
    python -m benchmarks.genre --model smollm2 --epsilon inf --json

SmolLM2-135M with small LoRA adapters in its last layers, on sentences of the genre `learned` cut to 32
tokens; the documents that the data set holds out whole are the test. The pretrained model is scored on the
same held-out sentences first, by the same code. A model's folder may stand in the place of its name.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
from peft import LoraConfig, get_peft_model
from pydantic import Field
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.secret import mean_loss
from reticent.data import load
from reticent.recipes import Request
from reticent.recipes._config import make_config, parse_settings
from reticent.recipes._training import Material, TrainingRecipe
from reticent.recipes._training_config import TrainingConfig
from reticent.recipes.text import perplexity, text_rows
from reticent.recipes.text._score import open_ended, padded

_Positive = Annotated[int, Field(ge=1)]


class GenreConfig(TrainingConfig):
    """Settings of the benchmark's training."""

    num_steps: _Positive = 8
    expected_batch_size: Annotated[float, Field(gt=0)] = 96
    max_norm: Annotated[float, Field(gt=0)] = 0.1
    lr: Annotated[float, Field(gt=0)] = 2e-3
    twin_lr: Annotated[float, Field(gt=0)] = 2e-3
    optimizer: Annotated[str, Field()] = "adamw"
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    physical_batch_size: int = 16
    rank: _Positive = 2
    layers: _Positive = 8
    num_texts: _Positive = 6000
    num_held_out: _Positive = 100
    length: _Positive = 32


class GenreRecipe(TrainingRecipe):
    """LoRA on a pretrained decoder, on given token rows."""

    name = "genre"
    summary = "a genre of the Brown corpus"
    config = GenreConfig
    fallback = None

    def __init__(self, model: str) -> None:
        self.model = model

    def num_examples(self, config: GenreConfig) -> int:
        return config.num_texts

    def fetch(self, config: GenreConfig, **_: Any) -> Any:
        raise NotImplementedError("the texts are handed in")

    def prepare(self, config: GenreConfig, fetched: Any) -> Material:
        train, held_out = fetched
        return Material(
            train=TensorDataset(*train), test=TensorDataset(*held_out), about={"name": "brown: learned"}
        )

    def build(self, config: GenreConfig) -> nn.Module:
        base = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        base.config.use_cache = False
        adapters = LoraConfig(
            r=config.rank, lora_alpha=4 * config.rank, lora_dropout=0.0, task_type="CAUSAL_LM",
            target_modules=["v_proj", "o_proj", "down_proj"],
            layers_to_transform=list(range(base.config.num_hidden_layers))[-config.layers :],
        )  # fmt: skip
        return get_peft_model(base, adapters)

    def random_rows(self, config: GenreConfig, num_rows: int) -> Any:
        return padded([[5] * config.length] * num_rows, pad=0)

    def loss_per_example(self, config: GenreConfig) -> Any:
        return mean_loss

    def scores(self, config: GenreConfig) -> Any:
        return lambda model, rows: {"loss": mean_loss(model, rows)}


def genre(split: Any, label: int, how_many: int) -> list[str]:
    """The first sentences of one genre with at least four words."""
    texts = [text for text, y in zip(split.x, split.y, strict=True) if y == label and len(text.split()) >= 4]
    if len(texts) < how_many:
        raise SystemExit(f"the genre has {len(texts)} such sentences, fewer than {how_many}")
    return texts[:how_many]


def rows_of(tokenizer: Any, texts: list[str], length: int) -> Any:
    """Token rows (N, length) of the texts' beginnings."""
    ids = [open_ended(tokenizer, text)[:length] for text in texts]
    return tuple(part[:-1] for part in padded([*ids, [0] * length], pad=0))


def main() -> None:
    """Score, train, score again, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a pretrained model's name or folder")
    parser.add_argument("--epsilon", type=float, required=True, help="inf: without privacy")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the training")
    parser.add_argument("--out", type=Path, help="keep the run's folder here")
    parser.add_argument("--json", action="store_true", help="one line")
    asked = parser.parse_args()
    chosen = {**parse_settings(asked.set), "epsilon": asked.epsilon}
    config = make_config(GenreConfig, chosen)
    folder = model_folder(asked.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    brown = load("brown")
    label = brown.class_names.index("learned")
    train = genre(brown.train, label, config.num_texts)
    held_out = genre(brown.test, label, config.num_held_out)

    def measured(model: nn.Module) -> Any:
        return perplexity(model, text_rows(tokenizer, held_out, max_length=config.length, batch_size=25))

    recipe = GenreRecipe(folder)
    before = measured(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    kept: dict[str, nn.Module] = {}
    recipe.finish = lambda config, model, folder, console: kept.update(model=model) or {}  # type: ignore
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        result = recipe.run(
            Request(recipe=recipe, config=config, chosen=chosen),
            out=asked.out or Path(scratch) / "run",
            console=Console(stderr=True),
            data=(rows_of(tokenizer, train, config.length), rows_of(tokenizer, held_out, config.length)),
        )
    trained = time.perf_counter() - began
    after = measured(kept["model"])
    shown = {
        "epsilon": result["epsilon"],
        "delta": result["delta"] if result["private"] else None,
        "num_steps": result["num_steps"],
        "pretrained_perplexity": round(before.perplexity, 2),
        "perplexity": round(after.perplexity, 2),
        "num_tokens": after.num_tokens,
        "trainable": sum(p.numel() for p in kept["model"].parameters() if p.requires_grad),
        "seconds": round(trained, 1),
    }
    print(json.dumps(shown, indent=None if asked.json else 2))


def model_folder(name: str) -> str:
    """A pretrained model's folder: fetched if it is a known name."""
    if Path(name).is_dir():
        return name
    from reticent.recipes.text._pretrained import pretrained_folder

    return str(pretrained_folder(name))


if __name__ == "__main__":
    main()
