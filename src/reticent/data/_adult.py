"""UCI Adult: raw columns as published, and an encoding built from public constants alone.

Room: data. Imports numpy only.

Why an own encoding: scaling by the data's mean or listing the categories that occur reads every
private row outside the accounted mechanism. Here each row is encoded from itself, the categories
that the data set's public documentation lists [1], and round constants.

Shape letters: N example, D feature.

Sources:
    [1] Becker and Kohavi 1996, Adult, UCI Machine Learning Repository, file `adult.names`.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from reticent.data._images import bad_format
from reticent.data._records import ArrayPair, Arrays
from reticent.errors import DataError

COLUMNS: Final = (
    *("age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation"),
    *("relationship", "race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country"),
)
NUMERIC: Final = ("age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week")
UNKNOWN: Final = "?"

# Value that maps to 1; larger values are cut. `fnlwgt` is a survey weight, no property of the
# person, and stays out. The two money columns go through log(1 + x) first.
SCALES: Final[Mapping[str, float]] = MappingProxyType(
    {
        "age": 100.0,
        "education_num": 16.0,
        "capital_gain": 100_000.0,
        "capital_loss": 100_000.0,
        "hours_per_week": 100.0,
    }
)
_LOGARITHMIC: Final = ("capital_gain", "capital_loss")

_CATEGORIES_TEXT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "workclass": "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov Without-pay "
        "Never-worked",
        "education": "Bachelors Some-college 11th HS-grad Prof-school Assoc-acdm Assoc-voc 9th 7th-8th 12th "
        "Masters 1st-4th 10th Doctorate 5th-6th Preschool",
        "marital_status": "Married-civ-spouse Divorced Never-married Separated Widowed Married-spouse-absent "
        "Married-AF-spouse",
        "occupation": "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
        "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing Transport-moving Priv-house-serv "
        "Protective-serv Armed-Forces",
        "relationship": "Wife Own-child Husband Not-in-family Other-relative Unmarried",
        "race": "White Asian-Pac-Islander Amer-Indian-Eskimo Other Black",
        "sex": "Female Male",
        "native_country": "United-States Cambodia England Puerto-Rico Canada Germany "
        "Outlying-US(Guam-USVI-etc) India Japan Greece South China Cuba Iran Honduras Philippines Italy "
        "Poland Jamaica Vietnam Mexico Portugal Ireland France Dominican-Republic Laos Ecuador Taiwan Haiti "
        "Columbia Hungary Guatemala Nicaragua Scotland Thailand Yugoslavia El-Salvador Trinadad&Tobago "
        "Peru Hong Holand-Netherlands",
    }
)
CATEGORIES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {column: tuple(text.split()) for column, text in _CATEGORIES_TEXT.items()}
)
FEATURE_NAMES: Final = (
    *SCALES,
    *(f"{column}={value}" for column, values in CATEGORIES.items() for value in values),
)


def encode_adult(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Encode raw columns as features in [0, 1].

    Numeric columns are divided by the round constants in `SCALES` and cut to [0, 1]; categories
    are one-hot over the documented lists; an unknown value (`?`) is a block of zeros.

    Args:
        columns: raw columns by name, each (N,); numbers for the numeric ones, text for the rest.
            N may be 0.

    Returns:
        float32 (N, 104), columns as in `FEATURE_NAMES`.

    Guarantee:
        A row's features depend on that row alone: adding, removing or permuting other rows leaves
        them as they are.

    Raises:
        DataError[data-format]: a column is missing, or holds a value outside the documented list.
    """
    missing = [name for name in (*SCALES, *CATEGORIES) if name not in columns]
    if missing:
        raise _bad_columns(f"columns {', '.join(missing)} are missing")
    numeric = [_scaled(columns[name], name) for name in SCALES]
    one_hot = [_one_hot(columns[name], name) for name in CATEGORIES]
    return np.concatenate([*numeric, *one_hot], axis=1)


def _scaled(values: np.ndarray, column: str) -> np.ndarray:
    x, scale = values.astype(np.float64), SCALES[column]
    if column in _LOGARITHMIC:
        x, scale = np.log1p(np.clip(x, 0.0, scale)), np.log1p(scale)
    return np.clip(x / scale, 0.0, 1.0).astype(np.float32)[:, None]


def _one_hot(values: np.ndarray, column: str) -> np.ndarray:
    matches = values[:, None] == np.array(CATEGORIES[column])
    if not np.all(matches.any(axis=1) | (values == UNKNOWN)):
        raise _bad_columns(f"column '{column}' holds a value outside its documented list")
    return matches.astype(np.float32)


def _bad_columns(what: str) -> DataError:
    return DataError(
        f"These are not the raw columns of Adult: {what}. Give them as load('adult').train.columns holds "
        "them; the lists are in reticent.data.ADULT_CATEGORIES.",
        code="data-format",
    )


def assemble_adult(arrays: Arrays) -> tuple[ArrayPair, ArrayPair]:
    """Decoded raw columns -> encoded splits that keep their raw columns."""

    def split(name: str) -> ArrayPair:
        columns = MappingProxyType({column: arrays[f"{name}_{column}"] for column in COLUMNS})
        return ArrayPair(encode_adult(columns), arrays[f"{name}_y"], columns)

    return split("train"), split("test")


def decode_adult(folders: tuple[Path, ...]) -> Arrays:
    """`adult.data` and `adult.test`, wherever they lie: raw columns, and 1 for an income above 50K."""
    (folder,) = folders
    arrays: dict[str, np.ndarray] = {}
    for split, name in (("train", "adult.data"), ("test", "adult.test")):
        path = next(iter(sorted(folder.rglob(name))), folder / name)
        rows = _rows(path)
        for index, column in enumerate(COLUMNS):
            values = [row[index] for row in rows]
            arrays[f"{split}_{column}"] = (
                np.array([int(value) for value in values], dtype=np.int64)
                if column in NUMERIC
                else np.array(values, dtype=np.str_)
            )
        incomes = [row[-1].rstrip(".") for row in rows]
        if not set(incomes) <= {"<=50K", ">50K"}:
            raise bad_format(path, "has an income that is neither '<=50K' nor '>50K'")
        arrays[f"{split}_y"] = np.array([income == ">50K" for income in incomes], dtype=np.int64)
    return arrays


def _rows(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="ascii").splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip() and line[0] != "|"]
    if not rows or any(len(row) != len(COLUMNS) + 1 for row in rows):
        raise bad_format(path, f"has a row without {len(COLUMNS) + 1} cells")
    return rows
