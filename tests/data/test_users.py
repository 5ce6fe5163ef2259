"""Names of users: one person is not two privacy units by being written in two ways."""

import pytest

from reticent.data import check_user_names
from reticent.errors import DataError


@pytest.mark.parametrize(
    "other",
    [
        *("anna ", " anna", "\tanna\n", "an\u200bna", "anna\ufeff", "\uff41nna", "\u00a0anna"),
        *("anna\x00", "an\x00na", "anna\x7f", "\x08anna", "anna\x85", "\x1b\x0eanna"),
        *(
            "anna\ufe0f",
            "anna\u3164",
            "\uffa0anna",
            "an\u034fna",
            "anna\u180b",
            "anna\U000e0101",
            "anna\ufff0",
        ),
    ],
)
def test_one_name_in_two_spellings_is_refused_without_showing_it(other):
    with pytest.raises(DataError, match="Two names of users differ in white space") as caught:
        check_user_names(["bob", "anna", "bob", other])
    assert caught.value.code == "user-column" and "nna" not in str(caught.value)


def test_composed_letters_inner_spaces_and_digits_are_one_name():
    for one, other in (("Zo\u00eb", "Zoe\u0308"), ("a b", "a  b"), ("a b", "a\u2003b"), (7, "7")):
        with pytest.raises(DataError, match="Two names"):
            check_user_names([one, other])


@pytest.mark.parametrize("blank", ["", "  ", "\t", "\u200b", "\u00a0", "\x00", "\x7f \x08", "\u3164"])
def test_a_name_of_nothing_but_white_space_is_nobodys(blank):
    with pytest.raises(DataError, match="nobody's") as caught:
        check_user_names(["anna", blank])
    assert caught.value.code == "user-column"


def test_other_names_are_other_people():
    check_user_names(["anna", "Anna", "anna", "ann a", "\u0430nna", "ann\u0301a", 7, 77, "007", "7a"])
    check_user_names(["\u3131", "\u1100\u1161", "\u2764", "\u4e00"])  # letters and signs that are seen
    check_user_names([])
