"""The code on docs/trainer.md runs as it stands."""

import re
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from reticent.account.ledger import read_run_ledger
from tests.recipes.text.models import byte_tokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trainer.md"


def test_the_example_trains_privately_and_saves(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path / "tiny"
    BertForSequenceClassification(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    texts = [(f"film {k} was {'good' if k % 2 else 'bad'}", k % 2) for k in range(30)]
    names = {
        "FOLDER": str(folder),
        "OUT": str(tmp_path / "run"),
        "SAVED": str(tmp_path / "saved"),
        "TEXTS": texts,
    }
    exec(compile(code, str(PAGE), "exec"), names)
    ledger = read_run_ledger(tmp_path / "run")
    assert ledger.num_steps == 2 and ledger.delta == 1 / 60
    assert (tmp_path / "saved" / "README.md").is_file() and (tmp_path / "run" / "report.html").is_file()
