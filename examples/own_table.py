"""A private linear classifier for your own table: a CSV of numbers, the label in the last column.

python examples/own_table.py patients.csv --classes 0,1 --least 0 --greatest 120

Without a file, the digits that come with scikit-learn. Bounds and classes are public: take limits that you
know without looking at the rows.
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits

from reticent.sklearn import PrivateClassifier


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?")
    parser.add_argument("--classes", default="0,1,2,3,4,5,6,7,8,9")
    parser.add_argument("--least", type=float, default=0.0)
    parser.add_argument("--greatest", type=float, default=16.0)
    parser.add_argument("--epsilon", type=float, default=3.0)
    asked = parser.parse_args()
    if asked.file is None:
        x, y = load_digits(return_X_y=True)
    else:
        rows = np.loadtxt(asked.file, delimiter=",", skiprows=1)
        x, y = rows[:, :-1], rows[:, -1].astype(int)
    public, private = slice(0, len(x) // 5), slice(len(x) // 5, None)  # the first fifth is to score on
    model = PrivateClassifier(
        epsilon=asked.epsilon,
        num_examples=len(x[private]),
        classes=[int(label) for label in asked.classes.split(",")],
        bounds=(asked.least, asked.greatest),
    )
    model.fit(x[private], y[private])
    accuracy = model.score(x[public], y[public])
    print(f"accuracy {accuracy:.3f} at epsilon {model.epsilon_:.3f}, delta {model.delta_:.1e}")


if __name__ == "__main__":
    main()
