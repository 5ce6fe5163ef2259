"""A reviewer's check: epsilon of a run, from its ledger, without this library's accountant.

python examples/check_a_run.py runs/first

Reads the ledger as docs/ledger.md describes it, checks the chain of hashes by docs/read_ledger.py, and
composes what it lists by Renyi differential privacy of the sampled Gaussian (Mironov et al. 2019,
arXiv:1908.10530, integer orders), written out below. That bound is looser than the stated one: it must come
out at or above it, and near.
"""

import argparse
import importlib.util
import json
import math
from pathlib import Path

READER = Path(__file__).resolve().parent.parent / "docs" / "read_ledger.py"
ORDERS = range(2, 257)


def renyi(order: int, rate: float, noise: float) -> float:
    """Divergence of one step at an integer order."""
    terms = [
        math.log(math.comb(order, k))
        + (order - k) * (math.log1p(-rate) if rate < 1 else (0.0 if k == order else -math.inf))
        + k * math.log(rate)
        + k * (k - 1) / (2 * noise**2)
        for k in range(order + 1)
    ]
    largest = max(terms)
    return (largest + math.log(sum(math.exp(t - largest) for t in terms))) / (order - 1)


def epsilon(segments: list[tuple[float, float, int]], delta: float) -> float:
    """Smallest over the orders, converted as in Canonne et al. 2020, arXiv:2004.00010, Prop. 12."""
    return min(
        sum(steps * renyi(order, rate, noise) for rate, noise, steps in segments)
        + math.log1p(-1 / order)
        - math.log(delta * order) / (order - 1)
        for order in ORDERS
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    asked = parser.parse_args()
    spec = importlib.util.spec_from_file_location("read_ledger", READER)
    assert spec is not None and spec.loader is not None
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    header, spent, _ = reader.read(asked.run / "ledger.jsonl")
    if header["reproducible"]:
        raise SystemExit("The noise can be reproduced from a seed: this run is not private.")
    if any(scheme not in ("poisson", "full-batch") for (scheme, *_), _ in spent):
        raise SystemExit("This check knows Poisson and full batches only.")
    ours = epsilon([(rate, noise, steps) for (_, rate, noise, _), steps in spent], header["delta"])
    stated = json.loads((asked.run / "result.json").read_text(encoding="utf-8"))["epsilon"]
    print(f"{sum(steps for _, steps in spent)} steps, delta {header['delta']:g}, {header['relation']}")
    print(f"epsilon by this check at most {ours:.4f}; the run states {stated:.4f}")


if __name__ == "__main__":
    main()
