"""diffprivlib's logistic regression (objective perturbation, pure epsilon), in an environment of its own.

diffprivlib 0.6.6 needs scikit-learn below 1.6, which we do not pin for its sake. So this file is
also a program that its interpreter runs: it imports nothing of ours.

    python -m venv dpl
    dpl/bin/pip install diffprivlib==0.6.6 'scikit-learn==1.5.2' 'numpy<2.3' 'scipy<1.15'
    export RETICENT_DIFFPRIVLIB=dpl/bin/python
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

VARIABLE = "RETICENT_DIFFPRIVLIB"


def logistic_regression(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    epsilons: list[float],
    times: int,
) -> list[dict] | None:
    """Accuracy and AUC at each epsilon, `times` fits each; None if its interpreter is not named.

    Args:
        train: rows of norm at most 1, and labels 0 or 1.
        test: as `train`.
        epsilons: budgets; delta is 0.
        times: fits for each.
    """
    interpreter = os.environ.get(VARIABLE)
    if not interpreter:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, x=train[0], y=train[1], test_x=test[0], test_y=test[1])
        command = [interpreter, __file__, str(path), json.dumps(epsilons), str(times)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _fit_all(path: str, epsilons: list[float], times: int) -> list[dict]:
    import time
    import warnings

    from diffprivlib.models import LogisticRegression  # type: ignore[import-not-found]
    from sklearn.metrics import roc_auc_score

    warnings.simplefilter("ignore")
    data = np.load(path)
    rows = []
    for epsilon in epsilons:
        scores, began = [], time.perf_counter()
        for _ in range(times):
            model = LogisticRegression(epsilon=epsilon, data_norm=1.0, max_iter=1000)
            model.fit(data["x"].astype(np.float64), data["y"])
            ranked = model.predict_proba(data["test_x"])[:, 1]
            scores.append(
                (model.score(data["test_x"], data["test_y"]), roc_auc_score(data["test_y"], ranked))
            )
        accuracy, auc = np.array(scores).T
        rows.append(
            {
                "epsilon": epsilon, "delta": 0.0, "times": times,
                "test_accuracy": float(accuracy.mean()), "test_accuracy_spread": float(accuracy.std()),
                "test_auc": float(auc.mean()), "test_auc_spread": float(auc.std()),
                "seconds": (time.perf_counter() - began) / times,
            }
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    print(json.dumps(_fit_all(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))))
