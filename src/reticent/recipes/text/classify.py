"""The recipe `text-classify`: a pretrained model with a plain classification head, fine-tuned privately.

Room: recipes.text. Imports transformers and peft when a model is built.

Shape letters: B row, T position, K label.

Sources:
    [1] Li, Tramèr, Liang and Hashimoto 2022, arXiv:2110.05679: large batches, C = 0.1, no weight decay.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from reticent.data import load, pretrained_names
from reticent.errors import ConfigError

from .._training import Material, TrainingRecipe
from .._training_config import TrainingConfig
from ._pretrained import pretrained_folder
from ._save import save_model

Rows = tuple[Tensor, Tensor, Tensor]  # ids (B, T), attention mask (B, T), labels (B,)

# Rows to train on and number of labels: public constants.
KNOWN: Final = {
    "rotten-tomatoes": (7_464, 2),
    "imdb": (25_000, 2),
    "spam-assassin": (5_000, 2),
    "brown": (51_698, 15),
}

# Their positions begin behind the padding's: so many fewer tokens than positions.
_OFFSET: Final = 2
_OFFSET_TYPES: Final = ("camembert", "mpnet", "roberta", "xlm-roberta")


class TextClassifyConfig(TrainingConfig):
    """Settings of `text-classify`."""

    num_steps: Annotated[int, Field(ge=1, description="updates in the whole run")] = 60
    expected_batch_size: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="examples in a step, on average")
    ] = 512
    max_norm: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="clipping norm of one example's gradient")
    ] = 0.1
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="learning rate")] = 5e-4
    twin_lr: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="learning rate without privacy")
    ] = 1e-4
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw", "lamb"], Field(description="what updates the weights")
    ] = "adam"
    ema: Annotated[float, Field(ge=0, lt=1, description="decay of the weights' average; 0: none")] = 0.0
    physical_batch_size: int | str = 32
    model: Annotated[str, Field(description="minilm, mpnet, or a folder of transformers")] = "minilm"
    data: Annotated[
        Literal["rotten-tomatoes", "imdb", "spam-assassin", "brown"], Field(description="labelled texts")
    ] = "rotten-tomatoes"
    max_length: Annotated[int, Field(ge=4, description="tokens of a row; longer ones are cut")] = 64
    adaptation: Annotated[
        Literal["full", "lora", "bias"], Field(description="which weights are trained, beside the head")
    ] = "full"
    lora_rank: Annotated[int | None, Field(ge=1, description="of lora; default 8")] = None

    def ignored(self, settings: Any) -> list[str]:
        problems = super().ignored(settings)
        if "lora_rank" in settings and self.adaptation != "lora":
            problems.append("lora_rank would be ignored: set adaptation = lora as well, or leave it out")
        return problems


class TextClassifyRecipe(TrainingRecipe):
    """Cross-entropy of a plain head, one text a row."""

    name = "text-classify"
    summary = "labelled texts: a pretrained model with a plain head (MiniLM on film reviews)"
    config = TextClassifyConfig
    fallback = None

    def num_examples(self, config: TextClassifyConfig) -> int:
        return KNOWN[config.data][0]

    def fetch(self, config: TextClassifyConfig, *, report: Callable[[str], None], progress: bool) -> Any:
        return load(config.data, report=report, progress=progress)

    def prepare(self, config: TextClassifyConfig, fetched: Any) -> Material:
        tokenizer = classify_tokenizer(config.model)
        train, test = (
            TensorDataset(*encoded(tokenizer, split.x.tolist(), split.y, config.max_length))
            for split in (fetched.train, fetched.test)
        )
        about = {"name": fetched.name, "source": fetched.source, "licence": fetched.licence}
        return Material(train=train, test=test, about={**about, "sha256": fetched.sha256})

    def begins_with(self, config: TextClassifyConfig) -> Path | None:
        return None if config.model in pretrained_names() else Path(config.model)

    def build(self, config: TextClassifyConfig) -> nn.Module:
        return classifier(config)

    def random_rows(self, config: TextClassifyConfig, num_rows: int) -> Rows:
        shape = (num_rows, config.max_length)
        return torch.full(shape, 5), torch.ones(shape, dtype=torch.int64), torch.zeros(num_rows).long()

    def loss_per_example(self, config: TextClassifyConfig) -> Callable[[nn.Module, Any], Tensor]:
        return label_losses

    def scores(self, config: TextClassifyConfig) -> Callable[[nn.Module, Any], dict[str, Tensor]]:
        return accuracy_and_loss

    def finish(
        self, config: TextClassifyConfig, model: nn.Module, folder: Path, *, console: Console | None
    ) -> dict[str, Any]:
        base = config.model if config.model in pretrained_names() else None
        return {"kept": save_model(model, classify_tokenizer(config.model), folder, base=base)}


def label_losses(model: nn.Module, rows: Rows) -> Float[Tensor, " B"]:
    """Each row's cross-entropy."""
    return F.cross_entropy(_logits(model, rows), rows[2], reduction="none")


def accuracy_and_loss(model: nn.Module, rows: Rows) -> dict[str, Tensor]:
    """Each row's accuracy (0 or 1) and cross-entropy, shape (B,)."""
    logits_BK = _logits(model, rows)
    return {
        "accuracy": (logits_BK.argmax(1) == rows[2]).double(),
        "loss": F.cross_entropy(logits_BK, rows[2], reduction="none"),
    }


def _logits(model: nn.Module, rows: Rows) -> Float[Tensor, "B K"]:
    return model(input_ids=rows[0], attention_mask=rows[1]).logits


def encoded(tokenizer: Any, texts: list[str], labels: Any, max_length: int) -> Rows:
    """Texts as rows of `max_length` tokens, cut or padded."""
    made = tokenizer(texts, truncation=True, padding="max_length", max_length=max_length, return_tensors="pt")
    return made["input_ids"], made["attention_mask"], torch.as_tensor(labels, dtype=torch.int64)


@lru_cache(maxsize=2)
def classify_tokenizer(model: str) -> Any:
    """The model's tokenizer.

    Raises:
        ConfigError[text-model]: it has no pad token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        pretrained_folder(model), local_files_only=True, trust_remote_code=False
    )
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"The tokenizer of '{model}' has no pad token. Set one in its tokenizer_config.json, e.g. "
            '"pad_token": "<|endoftext|>".',
            code="text-model",
        )
    return tokenizer


def classifier(config: TextClassifyConfig) -> Any:
    """The model before training, in eval mode: dropout is off, noise is what regularises.

    Raises:
        ConfigError[text-model]: it reads fewer tokens than `max_length`, or cannot be trained privately.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = pretrained_folder(config.model)
    where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    settings = AutoConfig.from_pretrained(folder, num_labels=KNOWN[config.data][1], **where)
    if getattr(settings, "is_encoder_decoder", False):
        raise ConfigError(
            f"'{config.model}' is an encoder-decoder; text-classify needs an encoder or a decoder.",
            code="text-model",
        )
    reads = min(
        (getattr(settings, "max_position_embeddings", None) or config.max_length)
        - (_OFFSET if settings.model_type in _OFFSET_TYPES else 0),
        classify_tokenizer(config.model).model_max_length,
    )
    if config.max_length > reads:
        raise ConfigError(
            f"max_length = {config.max_length}, and '{config.model}' reads {reads} tokens: lower max_length.",
            code="text-model",
        )
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, config=settings, dtype=torch.float32, use_safetensors=True, **where
    ).eval()
    return _adapted(model, config)


def _adapted(model: Any, config: TextClassifyConfig) -> Any:
    """The head, and the weights that `adaptation` names, are trainable; the rest is frozen."""
    if config.adaptation == "full":
        return model
    if config.adaptation == "bias":
        inside = {id(p) for p in model.base_model.parameters()}
        for name, p in model.named_parameters():
            p.requires_grad_(id(p) not in inside or name.endswith("bias"))
        return model
    from peft import LoraConfig, get_peft_model

    rank = config.lora_rank or 8
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, task_type="SEQ_CLS", target_modules="all-linear"
    )
    return get_peft_model(model, settings).eval()


TEXT_CLASSIFY: Final = TextClassifyRecipe()
