"""The training script of timm on docs/images.md runs as it stands, but for its size."""

import re
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reticent.account.ledger import read_ledger
from reticent.errors import DataError
from tests.support.pages import ROOT

pytestmark = pytest.mark.vision
SMALLER = {
    "pretrained=True": "pretrained=False, img_size=32, depth=1, embed_dim=24, num_heads=2",
    "resolve_data_config({}": 'resolve_data_config({"input_size": (3, 32, 32)}',
    "num_examples=1000, expected_batch_size=100": "num_examples=12, expected_batch_size=6",
    "num_steps=100": "num_steps=3",
}


def test_the_script_on_the_page_trains_privately(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        folder = tmp_path / "own" / "train" / kind
        folder.mkdir(parents=True)
        for k in range(6):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    page = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "import timm" in block]
    for old, new in SMALLER.items():
        assert old in code
        code = code.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/images.md", "exec"), names)
    ledger = read_ledger(tmp_path / "runs" / "timm" / "ledger.jsonl")
    assert ledger.num_steps == 3 and not ledger.reproducible
    assert 0 < names["private"].epsilon().epsilon <= 8.0
    assert names["optimizer"].param_groups[0]["lr"] < 1e-3  # the schedule went along
    theirs = import_module("timm.data").create_dataset("", root="own", split="train")
    with pytest.raises(DataError, match="count twice"):
        names["plan"].batches(theirs)
