"""The recipe `text-classify`: a pretrained model fine-tuned privately on labelled texts or pairs of texts.

Room: recipes.text. Imports transformers and peft when a model is built.

Sources:
    [1] Li, Tramèr, Liang and Hashimoto 2022, arXiv:2110.05679: objectives aligned with pretraining, large
        batches, C = 0.1, no weight decay.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from reticent.audit import Inputs
from reticent.data import class_names, pretrained_names
from reticent.errors import ConfigError

from .._origin import folder_named
from .._parts import scored_at_once
from .._reader import Given, Reader, Watch, no_weights
from .._recipe import Request
from .._training import Material, TrainingRecipe
from ._adapt import adapt
from ._classify_config import TextClassifyConfig
from ._fit import check_row, read_lacking, read_model, read_tokenizer
from ._labelled import KNOWN, Labelled, LabelledFile, Splits, new_rows, num_units, splits
from ._made_up import random_tokens
from ._metrics import f1
from ._objectives import (
    Answers,
    Rows,
    class_losses,
    class_scores,
    head_answers,
    number_losses,
    number_scores,
    word_answers,
)
from ._packages import need_transformers
from ._pretrained import tell_note, with_note
from ._save import MODEL, save_model
from ._templates import PRESETS, Prompt, make_prompt, prompted
from ._units import as_units, losses_of_units, made_up_units, unit_of

# Which preset the words of a known data set's labels fit.
_PRESET_OF: Final = {"rotten-tomatoes": "sst-2", "imdb": "sst-2"}


class TextClassifyRecipe(TrainingRecipe):
    """One text, or one pair of texts, is a row; its loss is its own cross-entropy or squared error.

    With `user_column` the unit is a user, whose loss is the mean over at most `rows_per_user` rows.
    """

    name = "text-classify"
    summary = "labelled texts (data=FILE or a name) with a pretrained model: a head, masked or next words"
    config: type[TextClassifyConfig] = TextClassifyConfig
    fallback: str | None = None
    strange: Inputs | None = "random tokens"
    kept: ClassVar[tuple[str, ...]] = ("answers", "labels")
    holding_out: ClassVar[str | None] = "give a file of your own without test_data and test_split"

    def num_examples(self, config: TextClassifyConfig) -> int:
        return num_units(config.data, config.file)

    def unit(self, config: TextClassifyConfig) -> str:
        return unit_of(config)

    def inputs_each(self, config: TextClassifyConfig) -> int:
        return config.rows_each

    def reasons(self, asked: Request) -> Mapping[str, str]:
        """Why each setting that the person left out is as it is."""
        assert isinstance(asked.config, TextClassifyConfig)
        found = asked.config.suggestion().reasons
        chosen = {*asked.chosen, *(("expected_batch_size",) if asked.config.batch_schedule else ())}
        if not self.measures_norm(asked.config):
            chosen.add("max_norm")
        return {name: why for name, why in found.items() if name not in chosen}

    def holds_out(self, config: TextClassifyConfig) -> bool:
        return config.file is not None and config.test_data is None and config.test_split is None

    def measures_norm(self, config: TextClassifyConfig) -> bool:
        return bool(config.measure_norm) and math.isfinite(config.epsilon)

    def fetch(self, config: TextClassifyConfig, *, report: Callable[[str], None], progress: bool) -> Splits:
        need_transformers()
        tell_note(config.model, report)
        return splits(config.data, config.file, report=report, progress=progress)

    def prepare(self, config: TextClassifyConfig, fetched: Splits) -> Material:
        train, test = (encoded(config, rows) for rows in (fetched.train, fetched.test))
        return Material(
            train=as_units(train, fetched.train.users, config),
            test=TensorDataset(*test),
            about=with_note(fetched.about, config.model),
        )

    def begins_with(self, config: TextClassifyConfig) -> Path | None:
        return folder_named(config.model)  # which goes before a known name, as `pretrained_folder` has it

    def unloaded(self, config: TextClassifyConfig) -> TextClassifyConfig:
        """Without the model's weights, where all is trained or no head is new.

        Elsewhere what is trained depends on what the weights lack, and settings of generation come with
        those of a decoder, and are kept.
        """
        if config.objective == "prompt" or not (config.worded or config.adaptation == "full"):
            return config
        return config.model_copy(update={"init": "random"})

    def build(self, config: TextClassifyConfig) -> nn.Module:
        model, lacking = read_lacking(
            config.model,
            objective=config.objective,
            num_labels=_num_labels(config),
            max_length=config.max_length,
            random=config.init == "random",
        )
        if config.worded:
            prompt_of(config)  # refuse a template or a word now, not when rows are made
        model = adapt(
            model,
            adaptation=config.adaptation,
            new_head=not config.worded,
            random=lacking,
            lora_rank=config.lora_rank or 8,
            freeze_embeddings=config.freeze_embeddings,
            freeze_layers=config.freeze_layers,
        )
        answers, row = _answers(config), _made_up(config, 1, whole=True)
        check_row(
            model,
            config.model,
            max_length=config.max_length,
            answers=lambda read: answers(read, row),
        )
        return model

    def random_rows(self, config: TextClassifyConfig, num_rows: int) -> Any:
        return made_up_units(_made_up(config, num_rows * config.rows_each, whole=False), config)

    def strange_rows(self, config: TextClassifyConfig, num_rows: int) -> Any:
        return made_up_units(_made_up(config, num_rows * config.rows_each, whole=True), config)

    def loss_per_example(self, config: TextClassifyConfig) -> Callable[[nn.Module, Any], Tensor]:
        losses = number_losses if config.objective == "regression" else class_losses
        return losses_of_units(losses(_answers(config)), config)

    def scores(self, config: TextClassifyConfig) -> Callable[[nn.Module, Any], dict[str, Tensor]]:
        answers = _answers(config)
        return number_scores(answers) if config.objective == "regression" else class_scores(answers)

    def assess(
        self, config: TextClassifyConfig, model: nn.Module, test: Any, kept: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Of classes: macro F1. Of numbers: Pearson's correlation with the labels."""
        given, y_N = kept["answers"], kept["labels"]
        if config.objective != "regression":
            return {"test_f1": f1(given.argmax(1).tolist(), y_N.tolist())}
        pairs_2N = torch.stack([given[:, 0].double(), y_N.double()])
        found = float(torch.corrcoef(pairs_2N)[0, 1]) if len(y_N) > 1 else float("nan")
        return {"test_pearson": found if found == found else None}

    def reader(self, config: TextClassifyConfig, about: Mapping[str, Any], folder: Path) -> Reader:
        kept = config.model_copy(update={"model": str(folder / MODEL)})  # model and tokenizer as they ended
        numbers = config.objective == "regression"
        classes = () if numbers else config.labels or class_names(config.data)
        form = LabelledFile(
            path="",
            text_column=config.text_column,
            pair_column=config.pair_column,
            label_column=config.label_column,
            user_column=None,
            labels=None if numbers else classes,
            test_data=None,
            test_split=None,
            test_fraction=config.test_fraction,
        )

        def load(run: Path, weights: str) -> nn.Module:
            if not (run / MODEL / "config.json").is_file():
                raise no_weights(run, f"{MODEL}/config.json")
            return read_model(
                kept.model,
                objective=config.objective,
                num_labels=_num_labels(config),
                max_length=config.max_length,
            )

        def read(path: Path, watch: Watch) -> Given:
            rows, names, labelled = new_rows(path, form)
            watch("reading", 0, len(rows))
            tensors = TensorDataset(*encoded(kept, rows))
            return Given(names=names, column="row", rows=tensors, labelled=labelled)

        return Reader(
            classes=classes,
            answer="number" if numbers else "one",
            load=load,
            read=read,
            outputs=lambda model, rows: _answers(kept)(model, rows),
            batch_size=scored_at_once(self, config),
        )

    def finish(
        self, config: TextClassifyConfig, model: nn.Module, folder: Path, *, console: Console | None
    ) -> dict[str, Any]:
        base = config.model if config.model in pretrained_names() else None
        return {"kept": save_model(model, read_tokenizer(config.model), folder, base=base)}


def encoded(config: TextClassifyConfig, rows: Labelled) -> Rows:
    """Texts as rows of `max_length` tokens, cut or padded; each row from itself alone."""
    tokenizer = read_tokenizer(config.model)
    y_B = torch.as_tensor(rows.y, dtype=torch.float32 if config.objective == "regression" else torch.int64)
    if config.worded:
        ids_BT, mask_BT, at_B = prompted(tokenizer, prompt_of(config), rows, config.max_length)
        return ids_BT, mask_BT, torch.zeros_like(ids_BT), at_B, y_B
    seconds = () if rows.seconds is None else (list(rows.seconds),)
    made = tokenizer(
        list(rows.texts),
        *seconds,
        truncation=True,
        padding="max_length",
        padding_side="right",
        max_length=config.max_length,
        return_tensors="pt",
    )
    ids_BT = made["input_ids"]
    types_BT = made.get("token_type_ids", torch.zeros_like(ids_BT))
    return ids_BT, made["attention_mask"], types_BT, torch.zeros(len(rows), dtype=torch.int64), y_B


def _made_up(config: TextClassifyConfig, num_rows: int, *, whole: bool) -> Rows:
    """Random tokens and labels; of mask and prompt, the word is predicted at the last token."""
    tokenizer = read_tokenizer(config.model)
    seed = int(whole)
    ids_BT, mask_BT = random_tokens(
        tokenizer,
        num_rows,
        max_length=config.max_length,
        pad=tokenizer.pad_token_id,
        whole=whole,
        seed=seed,
    )
    last_B = mask_BT.sum(1) - 1
    if config.objective == "mask":
        ids_BT.scatter_(1, last_B[:, None], tokenizer.mask_token_id)
    generator = torch.Generator().manual_seed(seed)
    second_B = torch.randint(1, config.max_length, (num_rows,), generator=generator)
    types_BT = ((torch.arange(config.max_length) >= second_B[:, None]) & mask_BT.bool()).long()
    y_B = (
        torch.randn(num_rows, generator=generator)
        if config.objective == "regression"
        else torch.randint(_num_labels(config), (num_rows,), generator=generator)
    )
    return ids_BT, mask_BT, types_BT, last_B if config.worded else torch.zeros_like(last_B), y_B


def prompt_of(config: TextClassifyConfig) -> Prompt:
    """The template and label words that the settings name, for the model's tokenizer.

    Raises:
        ConfigError[text-template]: none is named, or it does not fit.
        ConfigError[label-words]: not one word for each label, or a word does not fit.
    """
    named = config.template or _PRESET_OF.get(config.data)
    if named is None:
        raise ConfigError(
            f"objective = {config.objective} needs a template: {', '.join(PRESETS)}, or one of your own, "
            "e.g. template='{text} It was {mask}.'.",
            code="text-template",
        )
    next_word = config.objective == "prompt"
    preset = PRESETS.get(named)
    template = named if preset is None else preset.prompt if next_word else preset.mask
    known = () if preset is None else (next_word and preset.next_words) or preset.words
    words = config.label_words or known
    if len(words) != _num_labels(config):
        raise ConfigError(
            f"There are {_num_labels(config)} labels and {len(words)} label words: give one for each, in "
            "the labels' order, with label_words=WORD,WORD.",
            code="label-words",
        )
    return make_prompt(
        read_tokenizer(config.model),
        template=template,
        words=words,
        pairs=config.pair_column is not None,
        next_word=next_word,
        max_length=config.max_length,
    )


def _answers(config: TextClassifyConfig) -> Answers:
    if config.worded:
        return word_answers(prompt_of(config).word_ids)
    typed = "token_type_ids" in read_tokenizer(config.model).model_input_names
    return head_answers(with_types=typed and config.pair_column is not None)


def _num_labels(config: TextClassifyConfig) -> int:
    if config.objective == "regression":
        return 1
    return KNOWN[config.data][1] if config.data in KNOWN else len(config.labels or ())


TEXT_CLASSIFY: Final = TextClassifyRecipe()
