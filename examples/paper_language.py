"""Li et al. 2022 (arXiv:2110.05679) in small: full and LoRA fine-tuning of one model at one epsilon.

python examples/paper_language.py rows.jsonl --model FOLDER --epsilon 3 8

rows.jsonl has the columns `source` and `target`. The paper compares these on E2E with GPT-2; with its data
and model (`reticent train e2e-gpt2 --dry-run` shows its settings) a run takes a GPU. All runs read
the same rows, so their epsilons add up: the last line says to what.
"""

import argparse
from pathlib import Path

from reticent.account import compose_runs
from reticent.account.ledger import read_run_ledger
from reticent.recipes import request, run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--model", required=True)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[3.0, 8.0])
    parser.add_argument("--out", type=Path, default=Path("runs/language"))
    parser.add_argument("--set", action="append", default=[], help="further settings, e.g. num_steps=400")
    asked = parser.parse_args()
    folders = []
    for adaptation in ("full", "lora"):
        for epsilon in asked.epsilon:
            settings = [f"data={asked.file}", f"model={asked.model}", f"adaptation={adaptation}"]
            settings += ["source_column=source", "target_column=target", f"epsilon={epsilon}", *asked.set]
            folders.append(asked.out / f"{adaptation}-{epsilon:g}")
            result = run(request("text-generate", settings), out=folders[-1])
            print(
                f"{adaptation:5} epsilon {result['epsilon']:.3f} perplexity {result['test_perplexity']:.2f}"
            )
    together = compose_runs([read_run_ledger(folder) for folder in folders])
    print(f"all of them together: epsilon {together.epsilon:.3f}")


if __name__ == "__main__":
    main()
