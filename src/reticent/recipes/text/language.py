"""The recipe `text-generate`: a pretrained decoder fine-tuned privately on texts, or on source and target.

Room: recipes.text. Imports transformers and peft when a model is built.

A row is one example: one text, or one source with one target. Its loss is the mean of -log p over its own
target tokens [1], so a long text weighs as much as a short one, and a row without a target token counts as
zero. Rows are not packed: two examples never share a sequence.

Shape letters: B row, T position.

Sources:
    [1] Li, Tramèr, Liang and Hashimoto 2022, arXiv:2110.05679
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from reticent.audit import Inputs
from reticent.data import pretrained_names
from reticent.errors import ConfigError

from .._origin import folder_named
from .._recipe import Request
from .._stamp import same_rows
from .._training import Material, TrainingRecipe
from .._training_config import PhysicalBatchSize
from ._adapt import adapt
from ._fit import check_row, read_model, read_tokenizer
from ._formats import Format
from ._made_up import random_tokens
from ._objectives import body_and_head
from ._packages import need_transformers
from ._pretrained import tell_note, with_note
from ._save import save_model
from ._score import IGNORED, Rows, open_ended, padded, perplexity, token_losses, token_losses_in_parts
from ._splits import KNOWN, Split, named_split, own_split, some
from ._suggest import Suggestion, suggest_generation
from ._text_config import WAYS, TextConfig, unread
from ._units import as_units, losses_of_units, made_up_units, unit_of


class TextGenerateConfig(TextConfig):
    """Settings of `text-generate`."""

    num_steps: Annotated[int, Field(ge=1, description="updates in the whole run")] = 100
    expected_batch_size: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="examples in a step, on average")
    ] = 256
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="learning rate")] = 2e-3
    twin_lr: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="learning rate without privacy")
    ] = 5e-4
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw", "lamb"], Field(description="what updates the weights")
    ] = "adam"
    physical_batch_size: PhysicalBatchSize = 16
    model: Annotated[str, Field(description="a decoder: smollm2, or a folder of transformers")] = "smollm2"
    data: Annotated[
        str | None, Field(description="brown, imdb, rotten-tomatoes, spam-assassin, or a file of rows")
    ] = None
    only_class: Annotated[
        str | None, Field(description="of data by name: rows of this class alone, e.g. learned")
    ] = None
    format: Annotated[
        Format,
        Field(description="of a file: table, or a public format, whose sources are then written out as text"),
    ] = "table"
    text_column: Annotated[str, Field(description="of a file: the texts")] = "text"
    source_column: Annotated[
        str | None, Field(description="of a file: what is given and not learned, e.g. a table")
    ] = None
    target_column: Annotated[str, Field(description="of a file with sources: what is learned")] = "target"
    separator: Annotated[str, Field(description="between source and target")] = "\n"
    max_examples: Annotated[
        int | None, Field(ge=1, description="train on so many rows (users), chosen by a fixed seed")
    ] = None
    max_test: Annotated[
        int | None, Field(ge=1, description="test on so many held-out rows, chosen by a fixed seed")
    ] = None
    test_data: Annotated[
        str | None,
        Field(description="another file to score on, with the same columns; taken as public"),
    ] = None
    test_fraction: Annotated[
        float, Field(gt=0, lt=1, description="of a file without test_data: share held out and scored")
    ] = 0.1
    max_length: Annotated[int, Field(ge=2, description="tokens of a row; longer ones are cut")] = 64
    adaptation: Annotated[str, Field(description=f"which weights are trained: {', '.join(WAYS)}")] = "lora"
    lora_rank: Annotated[int, Field(ge=1, description="of lora")] = 4
    lora_layers: Annotated[int | None, Field(ge=1, description="of lora: the last so many layers")] = None

    def ignored(self, settings: Collection[str]) -> list[str]:
        problems = super().ignored(settings)
        named = self.data in KNOWN
        table = not named and self.format == "table"
        reads = {
            "lora_layers": self.adaptation == "lora",
            "only_class": named,
            "format": not named,
            "text_column": table and self.source_column is None,
            "source_column": table,
            "target_column": table and self.source_column is not None,
            "separator": not named and not (table and self.source_column is None),
            "test_data": not named,
            "test_fraction": not named and self.test_data is None,
            "user_column": not named,
        }
        if self.format == "persona-chat" and not named and self.user_column != "dialog":
            problems.append(
                "format = persona-chat: what is said in a dialog stands in every later row of it, so a row "
                "bounds nobody: set user_column = dialog, and epsilon is a whole dialog's"
            )
        if self.data is not None and self.test_data is not None and same_rows(self.data, self.test_data):
            problems.append("test_data: these are the private rows, whose scores are not public")
        return problems + unread(settings, reads)

    def suggestion(self) -> Suggestion:
        """What suits private training on these rows or users; reads of a file only how many there are.

        Raises:
            ConfigError, DataError: as `split_of`.
        """
        return suggest_generation(num_examples=num_units(self), epsilon=self.epsilon, delta=self.delta)

    def completed(self, settings: Collection[str]) -> Self:
        """Steps, batch and delta as suit the data's public size and the budget; without data, as they are."""
        kept = super().completed(settings)
        if self.data is None:
            return kept
        left = {name: value for name, value in self.suggestion().values.items() if name not in settings}
        return kept.model_copy(update=left).with_mean()


class TextGenerateRecipe(TrainingRecipe):
    """Next-word prediction on texts, or on the targets of sources."""

    name = "text-generate"
    summary = "a pretrained language model on your texts (data=FILE or a name), LoRA by default"
    config: type[TextGenerateConfig] = TextGenerateConfig
    fallback: str | None = None
    strange: Inputs | None = "random tokens"
    holding_out: ClassVar[str | None] = "give a file of your own without test_data"

    def num_examples(self, config: TextGenerateConfig) -> int:
        return num_units(config)

    def num_available(self, config: TextGenerateConfig) -> int | None:
        if config.max_examples is None:
            return None
        whole = config.model_copy(update={"max_examples": None})
        found = self.num_examples(whole)
        return found if found > config.max_examples else None

    def holds_out(self, config: TextGenerateConfig) -> bool:
        return config.data is not None and config.data not in KNOWN and config.test_data is None

    def unit(self, config: TextGenerateConfig) -> str:
        return unit_of(config)

    def inputs_each(self, config: TextGenerateConfig) -> int:
        return config.rows_each

    def reasons(self, asked: Request) -> Mapping[str, str]:
        """Why each setting that the person left out is as it is."""
        assert isinstance(asked.config, TextGenerateConfig)
        chosen = {*asked.chosen, *(("expected_batch_size",) if asked.config.batch_schedule else ())}
        found = asked.config.suggestion().reasons
        return {name: why for name, why in found.items() if name not in chosen}

    def fetch(self, config: TextGenerateConfig, *, report: Callable[[str], None], progress: bool) -> Split:
        need_transformers()
        tell_note(config.model, report)
        return split_of(config)

    def prepare(self, config: TextGenerateConfig, fetched: Split) -> Material:
        tokenizer = tokenizer_of(config)
        train, test = (
            token_rows(tokenizer, pairs, config.max_length, config.separator)
            for pairs in (fetched.train, fetched.test)
        )
        if not bool((test[2][:, 1:] != IGNORED).any()):
            raise ConfigError(
                "No row that is scored has a token to predict, so there would be no perplexity: all are "
                "empty, or all source. Give other rows, or raise test_fraction or max_length.",
                code="text-no-tokens",
            )
        name = config.data if config.data in KNOWN else "file"
        return Material(
            train=as_units(train, fetched.users, config),
            test=TensorDataset(*test),
            about=with_note(
                {
                    "name": name,
                    "only_class": config.only_class,
                    **({} if fetched.scored is None else {"scored": fetched.scored}),
                },
                config.model,
            ),
        )

    def begins_with(self, config: TextGenerateConfig) -> Path | None:
        return folder_named(config.model)  # which goes before a known name, as `pretrained_folder` has it

    def build(self, config: TextGenerateConfig) -> nn.Module:
        model, row = adapted(decoder_of(config), config), _random_rows(config, 1, whole=True)
        check_row(
            model,
            config.model,
            max_length=config.max_length,
            answers=lambda read: mean_loss(read, row),
        )
        return model

    def random_rows(self, config: TextGenerateConfig, num_rows: int) -> Any:
        return _made_up(config, num_rows, whole=False)

    def strange_rows(self, config: TextGenerateConfig, num_rows: int) -> Any:
        return _made_up(config, num_rows, whole=True)

    def loss_per_example(self, config: TextGenerateConfig) -> Callable[[nn.Module, Any], Tensor]:
        # Two backwards keep nothing of the head either: not logits, nor their gradient.
        return losses_of_units(partial(mean_loss, in_parts=config.low_memory), config)

    def scores(self, config: TextGenerateConfig) -> Callable[[nn.Module, Any], dict[str, Tensor]]:
        return lambda model, rows: {"loss": mean_loss(model, rows, in_parts=config.low_memory)}

    def assess(
        self, config: TextGenerateConfig, model: nn.Module, test: Any, kept: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Token-weighted perplexity of the held-out rows, before training and after."""
        batches = [test[k : k + 25] for k in range(0, len(test), 25)]
        after = perplexity(model, batches)
        if config.init == "random":
            return {"test_perplexity": after.perplexity, "test_tokens": after.num_tokens}
        before = perplexity(decoder_of(config), batches)
        return {
            "test_perplexity": after.perplexity,
            "pretrained_perplexity": before.perplexity,
            "test_tokens": after.num_tokens,
        }

    def finish(
        self, config: TextGenerateConfig, model: nn.Module, folder: Path, *, console: Console | None
    ) -> dict[str, Any]:
        base = config.model if config.model in pretrained_names() else None
        return {"kept": save_model(model, tokenizer_of(config), folder, base=base)}


def _made_up(config: TextGenerateConfig, num_rows: int, *, whole: bool) -> Any:
    """Random tokens; of users, as many rows each as take part."""
    return made_up_units(_random_rows(config, num_rows * config.rows_each, whole=whole), config)


def _random_rows(config: TextGenerateConfig, num_rows: int, *, whole: bool) -> Rows:
    """Random tokens, all to be learned."""
    ids_BT, mask_BT = random_tokens(
        tokenizer_of(config),
        num_rows,
        max_length=config.max_length,
        pad=0,
        whole=whole,
        seed=int(whole),
    )
    return ids_BT, mask_BT, ids_BT.masked_fill(mask_BT == 0, IGNORED)


def mean_loss(model: nn.Module, rows: Rows, *, in_parts: bool = False) -> Float[Tensor, " B"]:
    """Each row's mean -log p over its labelled tokens; 0 for a row without any.

    Args:
        model: a causal language model.
        rows: token ids, attention mask, labels.
        in_parts: form logits some rows at a time where the model allows it, for less memory.
    """
    ids_BT, mask_BT, labels_BT = rows
    # Positions for every row: what is broadcast over the batch is nobody's own.
    positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": positions_BT}
    counts_B = (labels_BT[:, 1:] != IGNORED).sum(1).clamp_min(1)
    found = body_and_head(model) if in_parts else None
    if found is None:
        return token_losses(model(**inputs).logits, labels_BT).sum(1) / counts_B
    body, head = found
    return token_losses_in_parts(body(**inputs)[0], head, labels_BT).sum(1) / counts_B


def token_rows(tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int, separator: str) -> Rows:
    """(source, target) pairs as rows of `max_length` tokens; an empty source is none.

    A target ends with the end token where that fits. Where both do not fit, the source loses its beginning,
    then the target its end.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids, num_source = [], []
    for source, target in pairs:
        wanted = (_tokens(tokenizer, target, follows=bool(source)) + end)[:max_length]
        given = open_ended(tokenizer, source + separator) if source else []
        given = given[max(0, len(given) - (max_length - len(wanted))) :]
        ids.append(given + wanted)
        num_source.append(len(given))
    whole = padded([*ids, [0] * max_length], pad=0, num_source=[*num_source, 0])
    return tuple(part[:-1] for part in whole)  # pyright: ignore[reportReturnType]  (the last fixed the length)


def _tokens(tokenizer: Any, target: str, *, follows: bool) -> list[int]:
    """A target's tokens; what some tokenizers put before a text, only where nothing stands before it."""
    if not follows:
        return open_ended(tokenizer, target)
    return list(tokenizer(target, add_special_tokens=False, verbose=False)["input_ids"])


def tokenizer_of(config: TextGenerateConfig) -> Any:
    """The model's tokenizer; rows are padded behind a mask, so it needs no pad token."""
    return read_tokenizer(config.model, pads=False)


def decoder_of(config: TextGenerateConfig) -> Any:
    """The model before training; see `read_model`.

    Raises:
        ConfigError[text-model]: it is no decoder that can be trained privately on rows of `max_length`.
    """
    return read_model(
        config.model,
        objective="generate",
        max_length=config.max_length,
        random=config.init == "random",
    )


def adapted(model: Any, config: TextGenerateConfig) -> Any:
    """The model with only the weights trainable that `adaptation` names; see `adapt`."""
    return adapt(
        model,
        adaptation=config.adaptation,
        new_head=False,
        lora_rank=config.lora_rank,
        lora_alpha=4 * config.lora_rank,
        lora_layers=config.lora_layers,
        freeze_embeddings=config.freeze_embeddings,
        freeze_layers=config.freeze_layers,
        task="CAUSAL_LM",
    )


def num_units(config: TextGenerateConfig) -> int:
    """Rows (users) to train on: a public constant, or of a person's own file what it holds.

    Raises:
        ConfigError, DataError: as `split_of`.
    """
    if config.data in KNOWN and config.only_class is None:
        return min(KNOWN[config.data], config.max_examples or KNOWN[config.data])
    return split_of(config).num_units


def columns_of(config: TextGenerateConfig) -> tuple[str | None, str]:
    """Columns of sources, if there are any, and of targets."""
    if config.format != "table":
        return "source", "target"
    return config.source_column, config.target_column if config.source_column else config.text_column


def split_of(config: TextGenerateConfig) -> Split:
    """Rows to train on and held out, as the settings ask for them.

    Raises:
        ConfigError[config]: no data is named, or a class that it has not.
        DataError: the file is not as the settings say.
    """
    if config.data is None:
        raise ConfigError(
            f"text-generate needs data = one of {', '.join(KNOWN)}, or a file of rows.", code="config"
        )
    if config.data in KNOWN:
        split = named_split(config.data, config.only_class)
    else:
        source, target = columns_of(config)
        split = own_split(
            config.data,
            source_column=source,
            target_column=target,
            user_column=config.user_column,
            test_data=config.test_data,
            test_fraction=config.test_fraction,
            form=config.format,
        )
    return some(split, max_units=config.max_examples, max_test=config.max_test)


TEXT_GENERATE: Final = TextGenerateRecipe()
