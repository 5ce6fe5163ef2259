"""The recipe `table`: a private linear classifier on a person's own table of numbers and categories.

Room: recipes. May import torch and the floors below.

`last-layer`, on columns encoded by limits and values that the person states: what a column holds is private.
"""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field

from .._reader import Given, Watch, table_of
from .._stamp import same_rows
from ._columns import (
    Missing,
    TableFile,
    columns_of,
    names_in,
    new_rows,
    num_rows,
    table_features,
    table_shape,
)
from ._config import LastLayerConfig
from ._methods import PublicShape
from ._sources import Features
from .last_layer import LastLayerRecipe


def _joined(value: Any) -> Any:
    """A list of a TOML file, or a number that is one label, as the words that the command line takes."""
    words = value if isinstance(value, list | tuple) else [value]
    plain = all(isinstance(word, str | int) and not isinstance(word, bool) for word in words)
    return ",".join(map(str, words)) if plain else value


class TableConfig(LastLayerConfig):
    """Settings of `table`."""

    features: Annotated[str, Field(description="always table")] = "table"
    data: Annotated[
        str | None, Field(description="a file of rows: .csv, .tsv, .jsonl or .parquet, or a datasets folder")
    ] = None
    columns: Annotated[
        str | None,
        Field(description="what each column may hold, known without looking: 'age=18..100,smoker=no|yes'"),
    ] = None
    label_column: Annotated[str, Field(description="of the file: the labels")] = "label"
    labels: Annotated[
        str | None,
        BeforeValidator(_joined),
        Field(description="all labels that there can be, in order, e.g. well,ill"),
    ] = None
    missing: Annotated[
        Missing, Field(description="cells that are empty or not as columns says; zero: they count as 0")
    ] = "refuse"
    test_data: Annotated[
        str | None, Field(description="another file to score on, with the same columns; taken as public")
    ] = None
    test_fraction: Annotated[
        float, Field(gt=0, lt=1, description="without test_data: share held out and scored")
    ] = 0.1

    @property
    def file(self) -> TableFile:
        """Where the rows are, and how to read them."""
        return TableFile(
            path=self.data or "",
            columns=columns_of(self.columns or "")[0],
            label_column=self.label_column,
            labels=_words(self.labels or ""),
            missing=self.missing,
            test_data=self.test_data,
            test_fraction=self.test_fraction,
        )

    def ignored(self, settings: Collection[str]) -> list[str]:
        problems = super().ignored(settings)
        if "features" in settings:
            problems.append("features is of last-layer: the rows of table are in data. Leave it out")
        if self.test_data is not None and "test_fraction" in settings:
            problems.append("test_fraction would be ignored: test_data is scored. Leave one out")
        if self.data is None or not os.path.exists(self.data):
            said = "is missing" if self.data is None else f"'{self.data}' is no file or folder"
            return [*problems, f"data: {said}. Name the file of your rows, e.g. data=patients.csv"]
        if self.test_data is not None and same_rows(self.data, self.test_data):
            problems.append("test_data: these are the private rows, whose scores are not public")
        labels = _words(self.labels or "")
        if len(set(labels)) < max(2, len(labels)):
            problems.append(
                "labels must be two different ones or more: name all labels of your file, e.g. "
                "labels=well,ill. They are not read from the file: a label that one row alone has would give "
                "that row away"
            )
        columns, wrong = columns_of(self.columns or "")
        problems += wrong
        if any(column.name == self.label_column for column in columns):
            problems.append(f"columns names the labels' column '{self.label_column}': leave it out there")
        if not columns and not wrong:
            names = ", ".join(name for name in names_in(self.data) if name != self.label_column)
            problems.append(
                "columns is missing: say what each column may hold, as you know it without looking at the "
                "rows, e.g. columns='age=18..100,smoker=no|yes'. Least and greatest values found in the rows "
                f"would give those rows away. The file has: {names}"
            )
        return problems

    def completed(self, settings: Collection[str]) -> Self:
        """With a delta that suits the data's public size."""
        if "delta" in settings:
            return self
        return self.model_copy(update={"delta": min(self.delta, num_rows(self.file) ** -1.1)})


class TableRecipe(LastLayerRecipe):
    """A private linear classifier on a table."""

    name = "table"
    summary = "your own table (data=FILE) of numbers and categories: a linear classifier, in seconds"
    config: type[LastLayerConfig] = TableConfig

    def shape_of(self, config: Any) -> PublicShape:
        return table_shape(config.file)

    def holds_out(self, config: Any) -> bool:
        return config.test_data is None

    def features_of(self, config: Any, *, report: Callable[[str], None], progress: bool) -> Features:
        return table_features(config.file)

    def noted_shape(self, config: Any, about: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        return config.file.dim, config.file.labels

    def new_rows(self, config: Any, about: Mapping[str, Any], path: Path, watch: Watch) -> Given:
        split, labelled = new_rows(table_of(path), config.file)
        names = [str(k + 1) for k in range(len(split))]
        return Given(names=names, column="row", rows=(split.x, split.y), labelled=labelled)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


TABLE: Final = TableRecipe()
