"""Classify your own images privately: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png.

python examples/own_images.py photos --epsilon 3

The training images are private; how many there are, the classes and the test images are public.
"""

import argparse
from pathlib import Path

from reticent.recipes import request, run
from reticent.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--out", default="runs/images")
    parser.add_argument("--set", action="append", default=[], help="further settings, e.g. augmult=8")
    asked = parser.parse_args()
    settings = [f"data={asked.folder}", f"epsilon={asked.epsilon}", *asked.set]
    result = run(request("vision-scratch", settings), out=Path(asked.out))
    print(f"accuracy {result['test_accuracy']:.3f}, epsilon {result['epsilon']:.3f}")
    print(f"report: {write_report(asked.out).path}")


if __name__ == "__main__":
    main()
