"""Names of users: one person is not two privacy units by being written in two ways."""

import pytest

from reticent.data import check_user_names
from reticent.errors import DataError


@pytest.mark.parametrize(
    "other",
    ["anna ", " anna", "\tanna\n", "an\u200bna", "anna\ufeff", "\uff41nna", "\u00a0anna"],
)
def test_one_name_in_two_spellings_is_refused_without_showing_it(other):
    with pytest.raises(DataError, match="Two names of users differ in white space") as caught:
        check_user_names(["bob", "anna", "bob", other])
    assert caught.value.code == "user-column" and "nna" not in str(caught.value)


def test_composed_letters_inner_spaces_and_digits_are_one_name():
    for one, other in (("Zo\u00eb", "Zoe\u0308"), ("a b", "a  b"), ("a b", "a\u2003b"), (7, "7")):
        with pytest.raises(DataError, match="Two names"):
            check_user_names([one, other])


@pytest.mark.parametrize("blank", ["", "  ", "\t", "\u200b", "\u00a0"])
def test_a_name_of_nothing_but_white_space_is_nobodys(blank):
    with pytest.raises(DataError, match="nobody's") as caught:
        check_user_names(["anna", blank])
    assert caught.value.code == "user-column"


def test_other_names_are_other_people():
    check_user_names(["anna", "Anna", "anna", "ann a", "\u0430nna", 7, 77, "007", "7a"])
    check_user_names([])
