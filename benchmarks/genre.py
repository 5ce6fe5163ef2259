"""A pretrained language model fine-tuned privately on one genre of the Brown corpus: held-out perplexity.

    python -m benchmarks.genre --epsilon 8 --json
    python -m benchmarks.genre --epsilon inf --json

The recipe `text-generate`: SmolLM2-135M with LoRA in its last layers, on sentences of the genre
`learned` cut to 32 tokens. The documents that the data set holds out whole are the test; the pretrained
model is scored on the same sentences by the same code. A model's folder may stand in the place of its name.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from reticent.recipes import go_on, request, run
from reticent.report import write_report

# Chosen before any run, to end within ten minutes on two cores: the rules of Li et al. 2022, and nothing
# was searched for.
SETTINGS: Final = (
    "data=brown",
    "only_class=learned",
    "max_length=32",
    "max_test=200",
    "num_steps=12",
    "expected_batch_size=128",
    "lr=2e-3",
    "lora_layers=8",
    "lora_rank=4",
    "physical_batch_size=16",
)


def main() -> None:
    """Train, score before and after, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a pretrained model's name or folder")
    parser.add_argument("--epsilon", type=float, required=True, help="inf: without privacy")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--out", type=Path, help="keep the run's folder here; one that is there is resumed")
    parser.add_argument("--json", action="store_true", help="one line")
    asked = parser.parse_args()
    settings = (*SETTINGS, f"model={asked.model}", f"epsilon={asked.epsilon}", *asked.set)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        result = _finished(asked.out or Path(scratch) / "run", settings)
    wanted = ("epsilon", "num_steps", "pretrained_perplexity", "test_perplexity", "test_tokens", "seconds")
    shown = {name: result[name] for name in wanted}
    shown |= {"delta": result["delta"] if result["private"] else None, "settings": list(settings)}
    shown["seconds_in_all"] = round(time.perf_counter() - began, 1)
    print(json.dumps(shown, indent=None if asked.json else 2))


def _finished(out: Path, settings: tuple[str, ...]) -> dict[str, Any]:
    """The result of the run in a folder, begun or gone on with."""
    console = Console(stderr=True)
    if (out / "run.json").is_file():
        result = go_on(out, console=console)
    else:
        result = run(request("text-generate", settings), out=out, console=console)
    write_report(out)
    return result


if __name__ == "__main__":
    main()
