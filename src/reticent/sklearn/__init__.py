"""Private training behind scikit-learn's interface: `fit`, `predict`, `predict_proba`.

Room: sklearn. Imports scikit-learn when it is imported, so import it by name:

    from reticent.sklearn import PrivateClassifier
"""

from ._classifier import PrivateClassifier

__all__ = ["PrivateClassifier"]
