"""The README's Python runs as it is printed."""

import re
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import reticent as rt

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def blocks():
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_ten_lines_train_and_leave_a_ledger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(600, 5)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 3, size=600))
    model = nn.Linear(5, 3)

    def loss_per_example(model, chunk):
        inputs, labels = chunk
        return functional.cross_entropy(model(inputs), labels, reduction="none")

    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_set": torch.utils.data.TensorDataset(x, y),
        "loss_per_example": loss_per_example,
    }
    printed = blocks()[0]
    small = printed.replace("60_000", "600").replace("4096", "64").replace("num_steps=600", "num_steps=4")
    assert small.count("600") == 1 and small != printed
    exec(compile(small, "README.md", "exec"), names)
    view = rt.read_ledger(tmp_path / "runs" / "a" / "ledger.jsonl")
    assert view.num_steps == 4
    spent = rt.epsilon(view.segments(), delta=view.delta, relation=view.relation)
    assert 0 < spent.epsilon <= 3.0


def test_the_public_face_of_the_engine_runs_as_printed():
    def loss_fn(model, batch):
        return model(batch).square().sum(dim=1)

    names = {"rt": rt, "model": nn.Linear(4, 2), "batch": torch.ones(3, 4), "loss_fn": loss_fn}
    exec(compile(blocks()[1], "README.md", "exec"), names)
    assert names["result"].bound == 1.0
    assert set(names["result"].total) == {"weight", "bias"}
