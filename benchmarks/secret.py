"""Secrets planted in e-mails: what a model trained without privacy gives away, and one trained with it.

    python -m benchmarks.secret --epsilon inf --json
    python -m benchmarks.secret --epsilon 8 --json

Ten sentences with a random code each are planted in ten training e-mails, one copy of each; ten more are
not planted, as the comparison. A small GPT-2 over bytes is trained from random weights on the beginnings of
100 e-mails, about 100 times on each, with the same code and settings whatever epsilon is. Then each code is
ranked by log-likelihood among other codes (exposure), and looked for symbol by symbol (extraction), by
somebody who knows the whole sentence but the code.
"""

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

from reticent.audit import Secret, chance_of_exposure, exposure, extract, plant
from reticent.data import load
from reticent.recipes import Request
from reticent.recipes._config import make_config, parse_settings
from reticent.recipes._training import Material, TrainingRecipe
from reticent.recipes._training_config import TrainingConfig
from reticent.recipes.text._score import log_likelihoods, padded
from reticent.recipes.text.language import mean_loss

NAMES = tuple("Ada Bea Cid Dee Eve Fay Gus Hal Ida Jon Kim Lea Max Ned Oda Pia Quy Rob Sue Tom".split())
NUM_PLANTED = 10
CODE_LENGTH = 6
_Positive = Annotated[int, Field(ge=1)]


class SecretConfig(TrainingConfig):
    """Settings of the benchmark's training."""

    num_steps: _Positive = 500
    expected_batch_size: Annotated[float, Field(gt=0)] = 20
    max_norm: Annotated[float, Field(gt=0)] = 0.1
    lr: Annotated[float, Field(gt=0)] = 5e-3
    twin_lr: Annotated[float, Field(gt=0)] = 5e-3
    optimizer: Annotated[str, Field()] = "adamw"
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    secret_seed: Annotated[int, Field(ge=0)] = 0
    num_texts: _Positive = 100
    num_held_out: _Positive = 256
    length: _Positive = 40
    width: _Positive = 64
    layers: _Positive = 2


class SecretRecipe(TrainingRecipe):
    """A small GPT-2 over bytes, on given texts."""

    name = "planted-secret"
    summary = "secrets planted in e-mails"
    config = SecretConfig
    fallback = None

    def num_examples(self, config: SecretConfig) -> int:
        return config.num_texts

    def fetch(self, config: SecretConfig, *, report: Callable[[str], None], progress: bool) -> Any:
        mails = load("spam-assassin", report=report, progress=progress)
        train = [body(text) for text in mails.train.x[: config.num_texts]]
        held_out = [body(text) for text in mails.test.x[: config.num_held_out]]
        secrets = secrets_of(config.secret_seed)
        return planted_texts(secrets[:NUM_PLANTED], train, config.secret_seed), held_out

    def prepare(self, config: SecretConfig, fetched: Any) -> Material:
        train, held_out = fetched
        return Material(
            train=TensorDataset(*rows_of(train, config.length)),
            test=TensorDataset(*rows_of(held_out, config.length)),
            about={"name": "spam-assassin", "planted": NUM_PLANTED},
        )

    def build(self, config: SecretConfig) -> nn.Module:
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=259, n_positions=config.length, n_embd=config.width, n_layer=config.layers,
                n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                bos_token_id=1, eos_token_id=1, pad_token_id=0,
            )
        )  # fmt: skip

    def random_rows(self, config: SecretConfig, num_rows: int) -> Any:
        return rows_of(["x" * config.length] * num_rows, config.length)

    def loss_per_example(self, config: SecretConfig) -> Any:
        return mean_loss

    def scores(self, config: SecretConfig) -> Any:
        return lambda model, rows: {"loss": mean_loss(model, rows)}


def rows_of(texts: list[str], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Byte tokens, mask and labels (N, length) of the texts' beginnings."""
    ids = [Bytes()(text)["input_ids"][:length] for text in texts]
    rows = padded([*ids, [3] * length], pad=0)
    return tuple(part[:-1] for part in rows)  # the last row only fixed the length


def secrets_of(seed: int) -> list[Secret]:
    """Twenty sentences, a name each; codes repeatable, so that runs can be compared."""
    draw = random.Random(seed)
    return [
        Secret(
            prefix=f"Access code of {name}: ",
            code="".join(draw.choice("0123456789") for _ in range(CODE_LENGTH)),
        )
        for name in draw.sample(NAMES, len(NAMES))
    ]


def planted_texts(secrets: list[Secret], texts: list[str], seed: int) -> list[str]:
    """The texts with each secret at the head of one of them, no two in the same."""
    chosen = random.Random(f"where {seed}").sample(range(len(texts)), len(secrets))
    planted = list(texts)
    for index, secret in zip(chosen, secrets, strict=True):
        (planted[index],), _ = plant([texts[index]], secret, copies=1, seed=0)
    return planted


class Bytes:
    """A tokenizer whose tokens are bytes; ids 0 to 2 are left to padding and the like."""

    eos_token_id = bos_token_id = None

    def __call__(self, text: str, *, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [3 + byte for byte in text.encode()]}


def measure(secrets: list[Secret], model: nn.Module, *, max_candidates: int) -> dict[str, Any]:
    """Exposure and extraction of each secret."""
    tokenizer = Bytes()

    def score(sentences: Any) -> list[float]:
        return log_likelihoods(model, tokenizer, sentences)

    found = [exposure(secret, score, max_candidates=max_candidates) for secret in secrets]
    return {
        "mean_bits": round(sum(e.bits for e in found) / len(found), 2),
        "bits": [round(e.bits, 2) for e in found],
        "ranks": [round((e.num_scored + 1) / 2**e.bits) for e in found],  # among the codes that were scored
        "extracted_greedily": sum(extract(secret, score) == secret.code for secret in secrets),
        "extracted_with_10_beams": sum(extract(secret, score, beams=10) == secret.code for secret in secrets),
    }


def body(mail: str) -> str:
    """What follows an e-mail's headers."""
    return mail.partition("\n\n")[2].strip() or mail


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epsilon", type=float, required=True, help="inf: without privacy")
    parser.add_argument("--seed", type=int, default=0, help="of codes and of where they are planted")
    parser.add_argument("--max-candidates", type=int, default=1023, help="codes ranked against")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the training")
    parser.add_argument("--out", type=Path, help="keep the run's folder here")
    parser.add_argument("--json", action="store_true", help="one line")
    asked = parser.parse_args()

    chosen = {**parse_settings(asked.set), "epsilon": asked.epsilon, "secret_seed": asked.seed}
    config = make_config(SecretConfig, chosen)
    secrets = secrets_of(asked.seed)
    recipe, kept = SecretRecipe(), {}
    recipe.finish = lambda config, model, folder, console: kept.update(model=model) or {}  # type: ignore
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        result = recipe.run(
            Request(recipe=recipe, config=config, chosen=chosen),
            out=asked.out or Path(scratch) / "run",
            console=Console(stderr=True),
        )
        trained = time.perf_counter() - began
    bits = CODE_LENGTH * math.log2(10)
    shown = {
        "epsilon": result["epsilon"],
        "delta": result["delta"] if result["private"] else None,
        "num_steps": result["num_steps"],
        "test_loss": round(result["test_loss"], 4),
        "most_bits": round(math.log2(asked.max_candidates + 1), 2),
        "planted": measure(secrets[:NUM_PLANTED], kept["model"], max_candidates=asked.max_candidates),
        "not_planted": measure(secrets[NUM_PLANTED:], kept["model"], max_candidates=asked.max_candidates),
        "chance_of_extraction_at_most": (
            chance_of_exposure(bits, epsilon=result["epsilon"], delta=result["delta"])
            if result["private"]
            else 1.0
        ),
        "seconds": round(trained, 1),
    }
    print(json.dumps(shown, indent=None if asked.json else 2))


if __name__ == "__main__":
    main()
