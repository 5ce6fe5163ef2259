"""A script that uses Accelerate, started by it or by torchrun: the lines that change, and what is refused."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from reticent.dist import Replicas
from reticent.errors import ReticentError
from reticent.train import PrivateStep
from tests.train.joint import make_data, make_model, make_plan, take

accelerator = Accelerator(cpu=True)
folder, found = Path(sys.argv[1]), {}
model, plan = make_model(), make_plan()
sgd = torch.optim.SGD(model.parameters(), lr=1.0)
private = PrivateStep(model, sgd, plan=plan, ledger=folder / "run", ranks=Replicas())
for batch in plan.batches(make_data()):
    take(private, batch)
found["steps"] = private.num_steps
found["weights"] = [p.sum().item() for p in model.parameters()]
model = make_model()
sgd = torch.optim.SGD(model.parameters(), lr=1.0)
wrapped, prepared, loader = accelerator.prepare(model, sgd, DataLoader(make_data(), batch_size=4))
try:
    found["loader"] = next(plan.batches(loader)).step
except ReticentError as e:
    found["loader"] = e.code
without = {
    "wrapped": ((wrapped, sgd), {"ranks": Replicas()}),
    "optimizer": ((model, prepared), {"ranks": Replicas()}),
    "unnamed": ((model, sgd), {}),
}
for name, (args, options) in without.items():
    try:
        ledger = folder / f"{name}-{accelerator.process_index}"
        PrivateStep(*args, plan=plan, ledger=ledger, **options)
        found[name] = None
    except ReticentError as e:
        found[name] = e.code
(folder / f"found-{accelerator.process_index}.json").write_text(json.dumps(found))
accelerator.end_training()
