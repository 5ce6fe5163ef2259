"""Averages of weights in whole runs with views, against the formula and what each update left."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

from reticent.recipes import request, run
from reticent.recipes._parts import asked_of, build_model
from reticent.train import load_tensors

MU = 0.3  # reached by warm-up at t = 3
NUM_STEPS, SIZES = 12, (256, 3, 1)  # rows at once: whole batches, a few passes, one row after another


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, name in itertools.product(("train", "test"), ("dark", "light")):
        (tmp_path / "images" / split / name).mkdir(parents=True)
        for k in range(12 if split == "train" else 2):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{k}.png")
    return tmp_path / "images"


@pytest.fixture
def updates():
    """The weights after each update of any optimizer, as one vector each."""
    seen = []

    def keep(optimizer, *_):
        weights = [p.detach().flatten() for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat(weights).double())

    hook = register_optimizer_step_post_hook(keep)
    yield seen
    hook.remove()


def run_of(folder, out, *settings):
    """The first weights, and name -> those of each file, as vectors; noise and draws are fixed."""
    few = ["image_size=8", "model=mlp-4", "expected_batch_size=6", f"num_steps={NUM_STEPS}", "lr=0.5"]
    fixed = ["noise_multiplier=1", "epsilon=100", "delta=1e-2", "noise_seed=1", "augmult=2", "polyak=true"]
    asked = request("vision-scratch", [f"data={folder}", *few, *fixed, *settings])
    model = build_model(*asked_of(asked))
    names = [name for name, _ in model.named_parameters()]

    def vector(tensors):
        return torch.cat([tensors[name].flatten() for name in names]).double()

    run(asked, out=out)
    files = ("weights", "ema", "polyak")
    return vector(model.state_dict()), {
        file: vector(load_tensors(out / f"{file}.safetensors")[0]) for file in files
    }


def reference(first, seen, start):
    """Both averages: the last weights until `start` updates are done; from there a <- d a + (1 - d) w."""
    ema, mean = first, first
    for update, weights in enumerate(seen):
        t = update - start
        d = min(MU, (1 + t) / (10 + t)) if t >= 0 else 0.0
        ema = d * ema + (1 - d) * weights
        mean = torch.stack(seen[start : update + 1]).mean(0) if t >= 0 else weights
    return ema, mean


@pytest.mark.parametrize("start", [0, 1, 5, 10, 50])
@pytest.mark.parametrize("size", SIZES)
def test_averages_are_the_formula_s_from_the_update_where_they_start(tmp_path, folder, updates, start, size):
    settings = [f"ema={MU}", f"ema_start={start}", f"physical_batch_size={size}"]
    first, made = run_of(folder, tmp_path / "run", *settings)
    assert len(updates) == NUM_STEPS
    assert torch.equal(made["weights"], updates[-1])
    ema, mean = reference(first, updates, start)
    torch.testing.assert_close(made["ema"], ema, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made["polyak"], mean, rtol=1e-5, atol=1e-6)
    late = start >= NUM_STEPS - 1
    assert torch.equal(made["polyak"], made["weights"]) is late  # else the averages are no last weights


@pytest.mark.parametrize("start", [0, 5, 50])
def test_averages_do_not_depend_on_how_many_rows_go_through_at_once(tmp_path, folder, start):
    """Of views that are drawn alike whatever the chunks: crops and flips are drawn chunk by chunk."""
    still = [f"ema={MU}", f"ema_start={start}", "crop_pad=0", "flip=false"]
    made = [run_of(folder, tmp_path / f"{n}", *still, f"physical_batch_size={n}")[1] for n in SIZES]
    for name, other in itertools.product(made[0], made[1:]):
        torch.testing.assert_close(made[0][name], other[name], rtol=1e-4, atol=1e-5)
