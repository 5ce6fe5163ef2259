"""Classify your own texts privately: a CSV with the columns `text` and `label`.

python examples/own_texts.py mail.csv --labels ham,spam --model FOLDER

FOLDER holds a pretrained encoder and its tokenizer, as `save_pretrained` of transformers leaves them. How
many rows the file has and which labels there are is public; everything else in it is private. Scores are of
a tenth of the rows, held out, and are not private.
"""

import argparse
from pathlib import Path

from reticent.recipes import request, run
from reticent.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--labels", required=True, help="all labels, in order: ham,spam")
    parser.add_argument("--model", default="minilm", help="a folder, or a known name")
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--out", default="runs/texts")
    parser.add_argument("--set", action="append", default=[], help="further settings, e.g. num_steps=100")
    asked = parser.parse_args()
    settings = [
        f"data={asked.file}",
        f"labels={asked.labels}",
        f"model={asked.model}",
        f"epsilon={asked.epsilon}",
        *asked.set,
    ]
    result = run(request("text-classify", settings), out=Path(asked.out))
    print(f"accuracy {result['test_accuracy']:.3f}, epsilon {result['epsilon']:.3f}")
    print(f"report: {write_report(asked.out).path}")


if __name__ == "__main__":
    main()
