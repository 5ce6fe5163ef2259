"""De et al. 2022 (arXiv:2204.13650) in small: averaged weights, trained from scratch.

python examples/paper_images.py --steps 300

The digits stand in for CIFAR-10: a small convolutional network, with and without an average of the weights,
at one epsilon. `reticent train cifar10-wrn-16-4-eps8 --dry-run` shows what the paper's own run would take.
"""

import argparse
import json
from pathlib import Path

from reticent.recipes import describe, request, run

VARIANTS = {"last weights": ["ema=0"], "averaged weights": ["ema=0.9"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("runs/images"))
    asked = parser.parse_args()
    for name, chosen in VARIANTS.items():
        settings = ["model=cnn", f"num_steps={asked.steps}", f"epsilon={asked.epsilon}", *chosen]
        result = run(request("digits", settings), out=asked.out / name.replace(" ", "-"))
        print(f"{name}: accuracy {result['test_accuracy']:.3f} at epsilon {result['epsilon']:.3f}")
    published = plan_of("cifar10-wrn-16-4-eps8")
    print("the paper's run:", json.dumps(published))


def plan_of(name: str) -> dict[str, float]:
    """What a published run would spend; reads no data."""
    shown = describe(request(name, []))
    return {key: shown[key] for key in ("epsilon", "delta", "num_steps", "noise_multiplier")}


if __name__ == "__main__":
    main()
