"""Runs of language models as published, each setting as its authors had it: to plan anywhere, and to train.

Room: recipes.text.

What differs from the publication: batches are Poisson samples, as its account assumes but its loader does
not do, and noise is solved for with a tighter account, so there is less of it at the same epsilon. The
model is a folder of yours (`model=FOLDER`), and so are the data.

Sources:
    [1] Li, Tramèr, Liang and Hashimoto 2022, arXiv:2110.05679, and the scripts of its code.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from reticent.errors import DataError

from .._config import with_defaults
from ._classify_config import TextClassifyConfig
from ._formats import table_in
from ._labelled import Splits
from ._splits import Split, some
from ._text_config import unread
from ._users import texts_of
from .classify import TextClassifyRecipe
from .language import TextGenerateConfig, TextGenerateRecipe, columns_of


class PublishedClassifyConfig(TextClassifyConfig):
    """Settings of `text-classify`, none of which is derived."""

    def ignored(self, settings: Collection[str]) -> list[str]:
        return [*super().ignored(settings), *_of_rows(settings)]

    def completed(self, settings: Collection[str]) -> Self:
        return super(TextClassifyConfig, self).completed(settings)


class PublishedClassify(TextClassifyRecipe):
    """A task of public size, from a folder with the columns that `datasets` gives it."""

    holding_out: ClassVar[str | None] = None

    def __init__(self, *, name: str, summary: str, size: int, **settings: Any) -> None:
        self.name: str = name
        self.summary: str = summary
        self.size: int = size
        self.config: type[TextClassifyConfig] = with_defaults(
            PublishedClassifyConfig,
            f"{''.join(part.title() for part in name.split('-'))}Config",
            model="roberta-large",
            objective="mask",
            max_length=256,
            max_norm=0.1,
            lr=5e-4,
            twin_lr=5e-5,
            delta=size**-1.1,
            physical_batch_size=20,
            **settings,
        )

    def num_examples(self, config: Any) -> int:
        return self.size

    def reasons(self, asked: Any) -> dict[str, str]:
        return {}

    def fetch(self, config: Any, *, report: Callable[[str], None], progress: bool) -> Splits:
        found = TextClassifyRecipe.fetch(self, config, report=report, progress=progress)
        check_size(len(found.train), self.size, self.name)
        return found


class PublishedGenerateConfig(TextGenerateConfig):
    """Settings of `text-generate`, none of which is derived."""

    def ignored(self, settings: Collection[str]) -> list[str]:
        reads: dict[str, bool] = {"max_examples": False, "test_fraction": False}
        problems = [*super().ignored(settings), *_of_rows(settings), *unread(settings, reads)]
        return list(dict.fromkeys(problems))

    def completed(self, settings: Collection[str]) -> Self:
        return super(TextGenerateConfig, self).completed(settings)


class PublishedGenerate(TextGenerateRecipe):
    """A table-to-text data set of public size: sources and targets in a file."""

    holding_out: ClassVar[str | None] = None

    def __init__(self, *, name: str, summary: str, size: int, **settings: Any) -> None:
        self.name: str = name
        self.summary: str = summary
        self.size: int = size
        self.config: type[TextGenerateConfig] = with_defaults(
            PublishedGenerateConfig,
            f"{name.partition('-')[0].title()}Config",
            model="gpt2",
            expected_batch_size=1024,
            max_norm=0.1,
            optimizer="adam",
            adaptation="full",
            physical_batch_size=16,
            **settings,
        )

    def num_examples(self, config: Any) -> int:
        return self.size

    def num_available(self, config: Any) -> None:
        return None

    def holds_out(self, config: Any) -> bool:
        return False

    def reasons(self, asked: Any) -> dict[str, str]:
        return {}

    def fetch(self, config: Any, *, report: Callable[[str], None], progress: bool) -> Split:
        if config.data is None or config.test_data is None:
            holds = (
                f"with columns {config.source_column} and {config.target_column}"
                if config.format == "table"
                else f"in the format {config.format}, or format=table for tables"
            )
            raise DataError(
                f"'{self.name}' reads its rows from two files: set data=FILE and test_data=FILE, {holds}.",
                code="data-missing",
            )
        train, test = (_pairs(Path(path), config) for path in (config.data, config.test_data))
        check_size(len(train), self.size, self.name)
        return some(Split(train=train, test=test), max_units=None, max_test=config.max_test)


def _of_rows(settings: Collection[str]) -> list[str]:
    found = [name for name in ("user_column", "rows_per_user") if name in settings]
    return [
        f"{name} would change what is counted, and the published run is one of rows: take text-classify or "
        "text-generate"
        for name in found
    ]


def check_size(found: int, size: int, name: str) -> None:
    """Refuse rows of another number than the plan is for.

    Raises:
        DataError[data-shape]: as said.
    """
    if found != size:
        raise DataError(
            f"'{name}' is planned for the {size:,} rows of the published data, and the file has {found:,}. "
            "For other rows take text-classify or text-generate.",
            code="data-shape",
        )


def _pairs(path: Path, config: Any) -> tuple[tuple[str, str], ...]:
    table = table_in(path, config.format)
    source, target = columns_of(config)
    sources = texts_of(table, source or "", setting="source_column")
    targets = texts_of(table, target, setting="target_column")
    return tuple(zip(sources, targets, strict=True))


SST_2: Final = PublishedClassify(
    name="sst-2-roberta",
    summary="SST-2 as published: RoBERTa-large as a masked-word predictor, 93.0 % there at 3 (needs a GPU)",
    size=67_349,
    data="sst-2",
    text_column="sentence",
    labels=("0", "1"),
    test_split="validation",
    template="sst-2",
    expected_batch_size=1000,
    num_steps=203,
)
QNLI: Final = PublishedClassify(
    name="qnli-roberta",
    summary="QNLI as published: RoBERTa-large as a masked-word predictor, 90.8 % there at 3 (needs a GPU)",
    size=104_743,
    data="qnli",
    text_column="question",
    pair_column="sentence",
    labels=("0", "1"),
    test_split="validation",
    template="qnli",
    expected_batch_size=2000,
    num_steps=315,
)
QQP: Final = PublishedClassify(
    name="qqp-roberta",
    summary="QQP as published: RoBERTa-large as a masked-word predictor, 86.4 % there at 3 (needs GPUs)",
    size=363_846,
    data="qqp",
    text_column="question1",
    pair_column="question2",
    labels=("0", "1"),
    test_split="validation",
    template="qqp",
    expected_batch_size=6000,
    num_steps=1092,
)
MNLI: Final = PublishedClassify(
    name="mnli-roberta",
    summary="MNLI as published: RoBERTa-large as a masked-word predictor, 86.4 % there at 3 (needs GPUs)",
    size=392_702,
    data="mnli",
    text_column="premise",
    pair_column="hypothesis",
    labels=("0", "1", "2"),
    test_split="validation_matched",
    template="mnli",
    expected_batch_size=6000,
    num_steps=1179,
)
E2E: Final = PublishedGenerate(
    name="e2e-gpt2",
    summary="E2E table-to-text as published: GPT-2 in full, BLEU 61.5 there at epsilon 3 (needs a GPU)",
    size=42_061,
    format="e2e",
    source_column="mr",
    target_column="ref",
    max_length=100,
    num_steps=411,
    lr=2e-3,
    delta=8e-6,
)
DART: Final = PublishedGenerate(
    name="dart-gpt2",
    summary="DART table-to-text as published: GPT-2 in full, epsilon 3 (needs a GPU)",
    size=93_187,
    format="dart",
    source_column="source",
    target_column="target",
    max_length=120,
    num_steps=1366,
    lr=5e-4,
    delta=1e-5,
)
