"""Adult: an encoding that reads one row at a time, from public constants."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reticent.data import ADULT_CATEGORIES, encode_adult
from reticent.data._adult import COLUMNS, FEATURE_NAMES, NUMERIC, assemble_adult, decode_adult
from reticent.errors import DataError

TRAIN = """39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, \
2174, 0, 40, United-States, <=50K
52, ?, 209642, HS-grad, 9, Married-civ-spouse, ?, Husband, Black, Male, 0, 1902, 45, ?, >50K

"""
TEST = """|1x3 Cross validator
25, Private, 226802, 11th, 7, Never-married, Machine-op-inspct, Own-child, Black, Male, 0, 0, 40, \
United-States, <=50K.
44, Private, 160323, Some-college, 10, Divorced, Sales, Wife, White, Female, 7688, 0, 99, Peru, >50K.
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "adult.data").write_text(TRAIN)
    (tmp_path / "deep" / "adult.test").write_text(TEST)
    return tmp_path


rows = st.fixed_dictionaries(
    {name: st.integers(0, 2_000_000) for name in NUMERIC}
    | {name: st.sampled_from([*values, "?"]) for name, values in ADULT_CATEGORIES.items()}
)


def as_columns(people):
    return {
        name: np.array([p[name] for p in people], dtype=np.int64 if name in NUMERIC else "U30")
        for name in COLUMNS
    }


@given(people=st.lists(rows, min_size=1, max_size=8), data=st.data())
def test_removing_or_permuting_rows_leaves_the_others_encoding(people, data):
    whole = encode_adult(as_columns(people))
    chosen = data.draw(st.lists(st.sampled_from(range(len(people))), unique=True))
    np.testing.assert_array_equal(encode_adult(as_columns([people[i] for i in chosen])), whole[chosen])


@given(people=st.lists(rows, min_size=1, max_size=8))
def test_features_lie_between_zero_and_one(people):
    features = encode_adult(as_columns(people))
    assert features.dtype == np.float32
    assert features.shape == (len(people), 104)
    assert 0.0 <= features.min() and features.max() <= 1.0


def test_no_rows_encode_to_no_rows():
    assert encode_adult(as_columns([])).shape == (0, 104)


def test_a_row_is_encoded_as_documented(folder):
    train, _ = assemble_adult(decode_adult((folder,)))
    first = dict(zip(FEATURE_NAMES, train.x[0].tolist(), strict=True))
    assert first["age"] == pytest.approx(0.39)
    assert first["education_num"] == pytest.approx(13 / 16)
    assert first["capital_gain"] == pytest.approx(np.log(2175) / np.log(100_001))
    assert first["capital_loss"] == 0.0
    assert first["hours_per_week"] == pytest.approx(0.4)
    assert [name for name, value in first.items() if "=" in name and value] == [
        "workclass=State-gov",
        "education=Bachelors",
        "marital_status=Never-married",
        "occupation=Adm-clerical",
        "relationship=Not-in-family",
        "race=White",
        "sex=Male",
        "native_country=United-States",
    ]


def test_an_unknown_value_is_a_block_of_zeros(folder):
    train, _ = assemble_adult(decode_adult((folder,)))
    for column in ("workclass", "occupation", "native_country"):
        block = [i for i, name in enumerate(FEATURE_NAMES) if name.startswith(column + "=")]
        assert train.x[1, block].sum() == 0
        assert train.x[0, block].sum() == 1


def test_raw_columns_and_labels_are_kept(folder):
    train, test = assemble_adult(decode_adult((folder,)))
    assert train.y.tolist() == [0, 1] and test.y.tolist() == [0, 1]
    assert tuple(train.columns) == COLUMNS
    assert train.columns["fnlwgt"].tolist() == [77516, 209642]
    assert test.columns["native_country"].tolist() == ["United-States", "Peru"]
    assert len(test) == 2


def test_a_value_outside_the_documented_list_is_refused_without_showing_it(folder):
    columns = dict(decode_adult((folder,)))
    columns = {name: columns[f"train_{name}"] for name in COLUMNS}
    columns["race"] = np.array(["White", "Martian"])
    with pytest.raises(DataError, match="column 'race' holds a value outside its documented list") as caught:
        encode_adult(columns)
    assert "Martian" not in str(caught.value)


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="columns capital_gain, race are missing"):
        encode_adult({k: v for k, v in as_columns([]).items() if k not in ("race", "capital_gain")})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-30], "has a row without 15 cells"),
        (lambda text: text.replace("<=50K", "rich"), "has an income that is neither"),
        (lambda text: "", "has a row without 15 cells"),
    ],
)
def test_a_damaged_file_is_refused(folder, damage, message):
    path = folder / "deep" / "adult.data"
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        decode_adult((folder,))
    assert caught.value.code == "data-format"
