"""`PrivateClassifier`: scikit-learn's own checks, the guarantee's conditions, where epsilon comes from."""

import math
import pickle
import tempfile
import traceback

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

import reticent as rt
from reticent.account.ledger import read_ledger
from reticent.errors import AccountingError, ConfigError, DataError
from reticent.recipes.features import _rows_run
from reticent.sklearn import PrivateClassifier, _classifier

# Public numbers and labels are declared, noise is reproducible: scikit-learn's checks ask for equal results.
CHECKED = PrivateClassifier(
    epsilon=50.0, delta=1e-3, num_examples="public", classes="public", noise_seed=0, method="adam"
)


@pytest.mark.slow
@parametrize_with_checks([CHECKED])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def digits():
    return load_digits(return_X_y=True)


def given(**changed):
    return PrivateClassifier(
        **{"epsilon": 3.0, "num_examples": 1797, "classes": range(10), "bounds": (0, 16), **changed}
    )


def test_it_learns_within_its_budget_and_says_so_from_a_ledger(tmp_path):
    x, y = digits()
    model = given(folder=tmp_path / "run").fit(x, y)
    assert 2.9 < model.epsilon_ <= 3.0
    assert model.private_
    assert model.delta_ == 1797**-1.1 or model.delta_ == 1e-5
    assert model.score(x, y) > 0.8
    assert (tmp_path / "run" / "ledger.jsonl").read_text() == model.ledger_
    view = read_ledger(tmp_path / "run" / "ledger.jsonl")
    report = rt.epsilon(view.segments(), delta=view.delta, relation=view.relation)
    assert report.epsilon == pytest.approx(model.epsilon_, rel=1e-6)
    assert view.public["num_examples"] == 1797


@pytest.mark.parametrize("spent", [True, False])
def test_an_interrupted_fit_leaves_the_ledger_of_what_it_spent(tmp_path, monkeypatch, spent):
    real = _rows_run.run_stages

    def interrupted(*args, **named):
        if spent:
            real(*args, **named)
        raise KeyboardInterrupt

    model = given(method="least-squares")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(_rows_run, "run_stages", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            model.fit(*digits())
    kept = list(tmp_path.glob("reticent-fit-*/run/ledger.jsonl"))
    assert len(kept) == spent and any(tmp_path.iterdir()) == spent
    if spent:
        view = read_ledger(kept[0])
        assert 2.9 < rt.epsilon(view.segments(), delta=view.delta, relation=view.relation).epsilon <= 3.0
        assert str(kept[0]) in caught.value.__notes__[0]
    model.fit(*digits())  # one that ends leaves nothing
    assert list(tmp_path.glob("reticent-fit-*/run/ledger.jsonl")) == kept


def test_a_refit_without_an_epsilon_leaves_the_fit_before(tmp_path, monkeypatch):
    def unaccounted(*args, **named):
        raise AccountingError("no bound", code="accountants-disagree")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = given(method="least-squares").fit(*digits())
    before = {name: value for name, value in vars(model).items() if name.endswith("_")}
    model.epsilon = 1.0
    monkeypatch.setattr(_classifier, "ledger_epsilon", unaccounted)
    with pytest.raises(AccountingError) as caught:
        model.fit(*digits())
    assert all(getattr(model, name) is value for name, value in before.items())
    assert str(next(tmp_path.glob("reticent-fit-*/run/ledger.jsonl"))) in caught.value.__notes__[0]


def test_two_fits_differ_and_a_fitted_model_is_the_same_after_pickling():
    x, y = digits()
    model = given(method="least-squares")
    first = model.fit(x, y).decision_function(x[:5])
    copy = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copy.decision_function(x[:5]), first)
    assert not np.array_equal(clone(model).fit(x, y).decision_function(x[:5]), first)


def test_reproducible_noise_is_never_called_private():
    x, y = digits()
    model = given(noise_seed=1, method="least-squares").fit(x, y)
    assert not model.private_
    assert math.isinf(model.epsilon_)
    assert '"reproducible":true' in model.ledger_


@pytest.mark.parametrize("name", ["epsilon", "num_examples", "classes"])
def test_what_must_be_declared_is_asked_for_before_rows_are_read(name):
    with pytest.raises(ConfigError, match=f"Give {name}") as raised:
        given(**{name: None}).fit(None, None)
    assert raised.value.code == "estimator-public"


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"num_examples": 1796}, DataError, "num_examples is 1796"),
        ({"classes": range(9)}, DataError, "none of `classes`"),
        ({"bounds": (16, 0)}, DataError, "the first below the second"),
        ({"bounds": (np.zeros(3), np.ones(3))}, DataError, "64 columns"),
        ({"bounds": 16}, DataError, "two finite numbers"),
        ({"bounds": (0, 16, 3)}, DataError, "two finite numbers"),
        ({"bounds": ("a", "b")}, DataError, "two finite numbers"),
        ({"classes": [1]}, ConfigError, "2 classes or more"),
        ({"epsilon": math.inf}, ConfigError, "An infinite epsilon"),
        ({"epsilon": -1.0}, ConfigError, "epsilon"),
        ({"settings": {"epsilon": 100.0}}, ConfigError, "settings holds epsilon"),
        ({"settings": {"numsteps": 1}}, ConfigError, "unknown setting"),
        ({"settings": "abc"}, ConfigError, "pairs, or a mapping"),
        ({"settings": 3}, ConfigError, "pairs, or a mapping"),
        ({"num_examples": "secret"}, ConfigError, "'secret'"),
    ],
)
def test_what_would_void_the_guarantee_is_refused_and_spends_nothing(tmp_path, changed, error, message):
    x, y = digits()
    with pytest.raises(error, match=message):
        given(folder=tmp_path / "run", **changed).fit(x, y)
    assert not (tmp_path / "run").exists()


def test_an_error_of_a_row_does_not_show_what_is_in_it():
    rows = np.array([["1", "2"], ["3", "a name"]], dtype=object)
    with pytest.raises(DataError, match="text that is no number") as caught:
        given(num_examples=2, classes=[0, 1]).fit(rows, [0, 1])
    assert "a name" not in "".join(traceback.format_exception(caught.value))


def test_a_class_that_no_row_has_is_kept():
    x, y = digits()
    seen = y < 9
    model = given(num_examples=int(seen.sum()), method="least-squares").fit(x[seen], y[seen])
    assert list(model.classes_) == list(range(10))
    assert model.predict_proba(x[:3]).shape == (3, 10)
