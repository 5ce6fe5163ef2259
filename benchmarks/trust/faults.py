"""Faults injected into ledgers, bad settings tried, and neighbouring batches compared."""

import itertools
import math
import tempfile
from pathlib import Path

import torch
from torch import nn

from reticent import clipped_sum
from reticent.account.ledger import Ledger, read_ledger
from reticent.clipping import AutomaticClipping, FlatClipping, PerLayerClipping
from reticent.errors import LedgerError, ReticentError
from reticent.plan import Plan
from reticent.records import Budget, Mechanism, NeighbouringRelation, SamplingScheme
from reticent.sample import FullBatchSampler, PoissonSampler

STEP = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.1, noise_multiplier=1.0)
BAD = (math.nan, math.inf, -math.inf, -1, -1.5, "1", None, True, [], {}, 10**400, "nan", 1j, b"1")


def ledgers(num_steps=12):
    """A ledger torn at every byte, and with every byte changed: what was lost, what went unnoticed."""
    torn = lost = changed = unnoticed = 0
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.jsonl"
        with Ledger.create(
            path, run_id="a", relation=NeighbouringRelation.ZERO_OUT, delta=1e-5, num_steps=99, public={}
        ) as ledger:
            durable = [len(path.read_bytes())]
            for _ in range(num_steps):
                ledger.append_step(STEP)
                durable.append(len(path.read_bytes()))
        whole = path.read_bytes()
        for size in range(durable[0], len(whole) + 1):
            path.write_bytes(whole[:size])
            with Ledger.open(path) as ledger:
                torn += 1
                lost += ledger.num_steps < sum(end <= size for end in durable[1:])
        for position, bit in itertools.product(range(len(whole) - 1), (0, 3, 6)):
            spoilt = bytearray(whole)
            spoilt[position] ^= 1 << bit
            path.write_bytes(bytes(spoilt))
            changed += 1
            try:
                read_ledger(path)
                unnoticed += 1
            except LedgerError:
                pass
    return {
        "ledgers torn in a write, and opened again": torn,
        "of them, acknowledged steps lost": lost,
        "ledgers with one bit changed": changed,
        "of them, unnoticed": unnoticed,
    }


def settings():
    """Every number of every record, with everything that is none: how many were not refused, or crashed."""
    sampler = PoissonSampler(num_examples=100, expected_batch_size=10)
    makers = {
        "Mechanism": (Mechanism, {"scheme": "poisson", "sampling_prob": 0.1, "noise_multiplier": 1.0}),
        "Budget": (Budget, {"epsilon": 1.0, "delta": 1e-5}),
        "PoissonSampler": (PoissonSampler, {"num_examples": 100, "expected_batch_size": 10}),
        "FullBatchSampler": (FullBatchSampler, {"num_examples": 100}),
        "FlatClipping": (FlatClipping, {"max_norm": 1.0}),
        "Plan": (
            Plan,
            {
                "sampler": sampler,
                "num_steps": 10,
                "noise_multiplier": 1.0,
                "clipping": FlatClipping(max_norm=1.0),
                "delta": 1e-5,
            },
        ),
    }
    tried, accepted, crashed = 0, [], []
    for name, (make, good) in makers.items():
        for field, value in itertools.product(good, BAD):
            tried += 1
            try:
                make(**{**good, field: value})
                accepted.append(f"{name}.{field} = {value!r}"[:80])
            except ReticentError:
                pass
            except Exception as error:  # a crash is what is counted
                crashed.append(f"{name}.{field} = {value!r}"[:60] + f": {type(error).__name__}")
    return {"bad settings tried": tried, "accepted": accepted, "refused without a code": crashed}


def neighbours(num_models=20):
    """Batches less each example, with examples up to 1e6 times as large, over kinds of clipping."""
    pairs, worst = 0, 0.0
    for seed in range(num_models):
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3))
        x = torch.randn(8, 5, generator=generator) * 10.0 ** torch.arange(-1.0, 7.0).unsqueeze(1)
        for clipping in (
            FlatClipping(max_norm=0.5),
            AutomaticClipping(max_norm=0.5),
            PerLayerClipping(max_norm=0.5),
        ):

            def losses(rows, model=model):
                return model(rows).square().sum(1)

            whole = clipped_sum(model, losses, x, clipping=clipping)
            for row in range(len(x)):
                rest = torch.cat([x[:row], x[row + 1 :]])
                less = clipped_sum(model, losses, rest, clipping=clipping).total
                moved = sum((whole.total[n].double() - less[n].double()).square().sum() for n in less) ** 0.5
                pairs, worst = pairs + 1, max(worst, float(moved) / whole.bound)
    return {"neighbouring batches compared": pairs, "largest move of a sum over its bound": worst}
