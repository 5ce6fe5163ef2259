"""The digits that scikit-learn carries inside itself: the data set that always works.

Room: data. Imports numpy, and scikit-learn inside the one function that needs it.
"""

import hashlib
from pathlib import Path
from typing import Final

import numpy as np

from reticent.data._records import Arrays
from reticent.errors import DataError

NUM_DIGITS: Final = 1797
NUM_TEST: Final = 360


def held_out_rows(num_rows: int = NUM_DIGITS, num_test: int = NUM_TEST) -> np.ndarray:
    """Row numbers of the test split, sorted: those whose SHA-256 of the decimal number is smallest.

    Depends on nothing but the two numbers: no generator, no label, no pixel.
    """
    order = sorted(range(num_rows), key=lambda row: hashlib.sha256(str(row).encode()).digest())
    return np.array(sorted(order[:num_test]), dtype=np.int64)


def decode_digits(folders: tuple[Path, ...]) -> Arrays:
    """8x8 images with values 0..16, as uint8, in the fixed public split of 1437 and 360."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DataError(
            "'digits' lies inside scikit-learn, which is not installed: pip install scikit-learn.",
            code="data-needs-package",
        ) from error

    rows, classes = load_digits(return_X_y=True)
    images = np.asarray(rows).reshape(-1, 8, 8).astype(np.uint8)
    labels = np.asarray(classes).astype(np.int64)
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[held_out_rows()] = True
    return {
        "train_x": images[~in_test],
        "train_y": labels[~in_test],
        "test_x": images[in_test],
        "test_y": labels[in_test],
    }
