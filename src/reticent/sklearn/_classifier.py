"""A private linear classifier for tables and features.

Room: sklearn. May import scikit-learn, torch, and the floors below.

Shape letters (this file): N row, D column, K class.
"""

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from reticent.errors import ConfigError, DataError
from reticent.recipes import make_config
from reticent.recipes.features import Head, LastLayerConfig, Split, fit_rows
from reticent.train import ledger_epsilon

_validate: Any = validate_data  # not typed: a checker takes its default, a string, for the type
_BLOCK: Final = 4096  # rows scored at once
_OWN: Final = ("epsilon", "delta", "method", "noise_seed", "seed", "features", "ema", "eval_every", "twin")


class PrivateClassifier(ClassifierMixin, BaseEstimator):
    """A linear classifier trained with differential privacy, for tables and for features of frozen models.

    The recipe `last-layer` behind scikit-learn's interface. Each row is scaled by public bounds, if given,
    and then to norm 1, which reads that row alone; then sums over the rows are released with Gaussian noise.

    Args:
        epsilon: budget of `fit`; must be given, finite and > 0.
        delta: of the guarantee, below 1 / N; left out, the smaller of 1e-5 and N^-1.1.
        num_examples: N, which the guarantee treats as public: its value, or "public" to declare the number
            of rows that `fit` gets public. Must be given.
        classes: the labels, which are public too: all that there can be, or "public" to declare that the set
            of labels in `y` is known without the data. Must be given.
        method: how the layer is found; "auto" chooses from N, D, K and the budget, never from the rows.
        bounds: public (least, greatest) of the columns, numbers or one for each column: values are clipped
            to them and scaled to [-1, 1]. None leaves columns as they are: right for features of a model,
            wrong for a table whose columns have different units.
        settings: further settings of the recipe, as (name, value) pairs or a mapping.
        folder: where to keep ledger, checkpoints and metrics, new or empty. None keeps them in a folder
            `reticent-fit-...` of the system's temporary files while `fit` runs. A `fit` that does not come to
            its end leaves it there if something was spent, and its exception names it.
        noise_seed: makes noise reproducible, and the result NOT private: for tests.

    Attributes:
        classes_: labels (K,).
        n_features_in_: D.
        ledger_: the ledger of `fit`, as text: written to a file, `reticent account` reads it.
        epsilon_: of what was fitted, from the ledger; infinite with `noise_seed`.
        delta_: of the guarantee.
        private_: whether there is a guarantee.
        head_: the fitted layer.

    Guarantee:
        What `fit` leaves on the estimator and in `folder` is (`epsilon_`, `delta_`)-differentially private
        for zeroing out one row; N, D, bounds and classes are public. Every `fit` spends anew: the epsilons of
        several fits on the same rows add up, those of a cross-validation among them.

    Raises:
        ConfigError[estimator-public]: epsilon, num_examples or classes are missing or not as said.
        ConfigError[config]: a setting is unknown or out of range.
        DataError[estimator-rows]: the number of rows is not `num_examples`, a label is not in `classes`, or
            bounds do not fit the columns.

    Examples:
        >>> from sklearn.datasets import load_digits
        >>> from reticent.sklearn import PrivateClassifier
        >>> x, y = load_digits(return_X_y=True)
        >>> model = PrivateClassifier(epsilon=3.0, num_examples=1797, classes=range(10), bounds=(0, 16))
        >>> model.fit(x, y).epsilon_ <= 3.0
        True
    """

    classes_: NDArray[Any]
    n_features_in_: int
    ledger_: str
    epsilon_: float
    delta_: float
    private_: bool
    head_: Head

    def __init__(
        self,
        *,
        epsilon: float | None = None,
        delta: float | None = None,
        num_examples: int | Literal["public"] | None = None,
        classes: Sequence[Any] | Literal["public"] | None = None,
        method: str = "auto",
        bounds: tuple[ArrayLike, ArrayLike] | None = None,
        settings: Mapping[str, Any] | Sequence[tuple[str, Any]] | None = None,
        folder: str | Path | None = None,
        noise_seed: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.num_examples = num_examples
        self.classes = classes
        self.method = method
        self.bounds = bounds
        self.settings = settings
        self.folder = folder
        self.noise_seed = noise_seed

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on private rows.

        Args:
            X: (N, D) finite numbers.
            y: (N,) labels.
        """
        self._check_declared()
        found: Any = _checked(self, X, y)
        x, targets = found[0], column_or_1d(found[1], warn=True)
        check_classification_targets(targets)
        labels, classes = self._labels(targets)
        if self.num_examples not in ("public", len(x)):
            raise DataError(
                f"num_examples is {self.num_examples}, the rows are another number. N is public: give the "
                "number of rows, or 'public'.",
                code="estimator-rows",
            )
        config = self._config(len(x))
        rows = Split(self._scaled(x), labels)
        with _run_folder(self.folder) as folder:
            head, ledger = fit_rows(config, rows, num_classes=len(classes), folder=folder)
            lines = (folder / "ledger.jsonl").read_text(encoding="ascii")
            report = ledger_epsilon(ledger, final=True)  # before anything is set, and the ledger removed
        self.head_, self.classes_, self.ledger_ = head, classes, lines
        self.epsilon_, self.delta_ = report.epsilon, report.delta
        self.private_ = math.isfinite(report.epsilon) and not ledger.reproducible
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Outputs of rows: (N, K), or (N,) for two classes, positive for the second."""
        z = self._outputs(X)
        return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """The softmax of the outputs, (N, K); not calibrated."""
        return torch.from_numpy(self._outputs(X)).softmax(dim=1).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest label of each row, (N,)."""
        most_likely = self._outputs(X).argmax(axis=1)
        return self.classes_[most_likely]

    def _outputs(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        found: Any = _checked(self, X, reset=False)
        rows = self._scaled(found)
        parts = []
        for start in range(0, len(rows), _BLOCK):
            x = torch.tensor(rows[start : start + _BLOCK])
            block = self.head_.preparation.apply(x, torch.zeros(len(x), dtype=torch.int64))
            with torch.no_grad():
                parts.append(self.head_(block.x.double()).numpy())
        return np.concatenate(parts)

    def _check_declared(self) -> None:
        missing = [name for name in ("epsilon", "num_examples", "classes") if getattr(self, name) is None]
        if missing:
            raise ConfigError(
                f"Give {', '.join(missing)}. There is no epsilon that suits everybody; the number of rows "
                'and the labels are taken as public, so say what they are, or num_examples="public" and '
                'classes="public".',
                code="estimator-public",
            )
        if self.epsilon == math.inf:
            raise ConfigError(
                "An infinite epsilon is no private training: use a linear model of scikit-learn.",
                code="estimator-public",
            )
        for name in ("num_examples", "classes"):
            value = getattr(self, name)
            if isinstance(value, str) and value != "public":
                raise ConfigError(f'{name} is a value or "public", got {value!r}.', code="estimator-public")

    def _labels(self, y: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Each row's place among the classes, and the classes in order."""
        declared = isinstance(self.classes, str)
        classes = np.unique(y if declared else np.asarray(self.classes))
        if len(classes) < 2:
            raise ConfigError(
                f"A classifier needs 2 classes or more, got {len(classes)} class.", code="estimator-public"
            )
        places = np.searchsorted(classes, y).clip(max=len(classes) - 1)
        if not np.array_equal(classes[places], y):
            raise DataError(
                "A label is none of `classes`. Name all labels that there can be.", code="estimator-rows"
            )
        return places.astype(np.int64), classes

    def _config(self, num_rows: int) -> LastLayerConfig:
        try:
            settings = dict(self.settings or {})
        except (TypeError, ValueError) as e:
            raise ConfigError(
                "settings are (name, value) pairs, or a mapping of names to values.", code="estimator-public"
            ) from e
        twice = [name for name in _OWN if name in settings]
        if twice:
            raise ConfigError(
                f"settings holds {', '.join(twice)}, which the estimator has as an argument of its own or "
                "does not do. Leave it out.",
                code="estimator-public",
            )
        delta = min(1e-5, num_rows**-1.1) if self.delta is None else self.delta
        given = {
            "epsilon": self.epsilon,
            "delta": delta,
            "method": self.method,
            "noise_seed": self.noise_seed,
        }
        return make_config(LastLayerConfig, {**given, "checkpoint_every": num_rows + 10_000, **settings})

    def _scaled(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.bounds is None:
            return x
        pair = _pair(self.bounds, x.shape[1:])
        if pair is None:
            raise DataError(
                f"bounds are two finite numbers, or two for each of the {x.shape[1]} columns, the first "
                "below the second.",
                code="estimator-rows",
            )
        least, greatest = pair
        return ((np.clip(x, least, greatest) - least) / (greatest - least) * 2.0 - 1.0).astype(np.float32)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = self.noise_seed is None
        return tags


def _pair(bounds: Any, columns: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(least, greatest), finite and in order, of all columns or of each; None if they are not."""
    try:
        least, greatest = (np.asarray(bound, dtype=np.float64) for bound in bounds)
    except (TypeError, ValueError, OverflowError):  # no two, or not of numbers
        return None
    if not all(bound.shape in ((), columns) and np.isfinite(bound).all() for bound in (least, greatest)):
        return None
    return (least, greatest) if (least < greatest).all() else None


@contextmanager
def _run_folder(given: str | Path | None) -> Iterator[Path]:
    """The folder of a run; a temporary one is removed, unless its block fails after something was spent."""
    if given is not None:
        yield Path(given)
        return
    scratch = Path(tempfile.mkdtemp(prefix="reticent-fit-"))
    folder = scratch / "run"
    try:
        yield folder
    except BaseException as error:
        if folder.exists():  # else nothing was spent
            error.add_note(
                f"This fit spent privacy before it ended: its ledger is '{folder / 'ledger.jsonl'}'. Keep "
                "it, and count it: reticent account LEDGER1 LEDGER2 ...."
            )
        else:
            shutil.rmtree(scratch)
        raise
    shutil.rmtree(scratch)


def _checked(estimator: PrivateClassifier, *arrays: ArrayLike, **options: Any) -> Any:
    """Arrays as scikit-learn checks them. Its error of a text that is no number shows it; ours does not."""
    try:
        return _validate(estimator, *arrays, dtype=np.float32, **options)
    except ValueError as error:
        if not str(error).startswith("could not convert"):
            raise
    raise DataError(
        "A value of X is text that is no number. Encode texts and categories by public rules first.",
        code="estimator-rows",
    )
