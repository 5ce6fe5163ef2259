"""Census-Income (KDD): an encoding that reads one row at a time, from public constants."""

import numpy as np
import pytest

from reticent.data._census import _PLACES as PLACES
from reticent.data._census import (
    CATEGORIES,
    FEATURE_NAMES,
    NUM_COLUMNS,
    NUMERIC,
    assemble_census,
    decode_census,
    encode_census,
)
from reticent.errors import DataError


def a_row(which, income):
    """Numbers `which`, and of each list the value number `which`, or an unknown one past its end."""
    cells = ["0"] * NUM_COLUMNS
    for place, _ in NUMERIC.values():
        cells[place] = str(which)
    for place, values in zip(PLACES, CATEGORIES.values(), strict=True):
        cells[place] = f" {values[which]}" if which < len(values) else " ?"
    return ",".join([*cells[:-1], income])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for split in ("train", "test"):
        rows = [a_row(0, " - 50000."), a_row(1, " 50000+."), a_row(60, " - 50000.")]
        (tmp_path / "deep" / f"census_income_1994_1995_{split}.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_rows_are_decoded_and_encoded_by_themselves(folder):
    arrays = decode_census((folder,))
    train, test = assemble_census(arrays)
    assert train.y.tolist() == [0, 1, 0]
    assert train.x.dtype == np.float32
    assert train.x.shape == test.x.shape == (3, 403) == (3, len(FEATURE_NAMES))
    assert 0.0 <= train.x.min() and train.x.max() <= 1.0
    assert train.x[0, len(NUMERIC) :].sum() == len(CATEGORIES)
    assert train.x[2, len(NUMERIC) :].sum() == 0.0  # all unknown
    for row in range(3):
        alone = encode_census(arrays["train_numbers"][[row]], arrays["train_codes"][[row]])
        np.testing.assert_array_equal(alone[0], train.x[row])


def test_a_value_outside_the_lists_is_refused(folder):
    path = folder / "deep" / "census_income_1994_1995_train.csv"
    path.write_text(path.read_text().replace(CATEGORIES["race"][0], "Martian"))
    with pytest.raises(KeyError):  # which `load` reports as data-format, without the value
        decode_census((folder,))


@pytest.mark.parametrize("damage", ["1,2,3\n", "\n"])
def test_a_row_of_another_form_is_refused(folder, damage):
    path = folder / "deep" / "census_income_1994_1995_train.csv"
    path.write_text(path.read_text() + damage)
    with pytest.raises(DataError, match="data-format"):
        decode_census((folder,))
