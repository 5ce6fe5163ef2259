"""What each rank of the scaling benchmark's test does; see `tests.dist.ranks`."""

from functools import partial

import pytest
from torch.distributed.tensor import DTensor

from benchmarks import scaling, text
from reticent.dist import Replicas, TensorParallel
from tests.dist.work import main


def micro():
    return text.gpt2(num_layers=2, num_examples=4, length=16, width=32, num_heads=4, vocabulary=100)


def cut_by_torch(ranks, folder):
    """How far losses and gradients of the cut model are from those of the whole one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scaling.CASES, "micro", micro)
        whole, (cut, adam, _) = scaling._work("micro"), scaling._plain("micro", TensorParallel())
    losses, of_cut = whole.losses(whole.batch), cut.losses(cut.batch)
    losses.mean().backward()
    of_cut.mean().backward()
    gaps = {"losses": float((losses - of_cut).detach().abs().max())}
    wanted = {n: p.grad for n, p in whole.model.named_parameters()}
    for name, p in cut.model.named_parameters():
        grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        turned = grad.T if ".h." in name and grad.dim() == 2 else grad  # of a Conv1D
        gaps[name] = float((turned - wanted[name]).norm() / wanted[name].norm())
    adam.step()  # takes plain tensors and DTensors
    return {"worst": max(gaps.values()), "number": len(gaps), "wanted": len(wanted)}


def measured(ranks, folder, *, parallel):
    """One counted round of two chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scaling.CASES, "micro", micro)
        return scaling.measure("micro", parallel, 1, folder / parallel, chunks=2, warm=1)


TASKS = {
    "cut_by_torch": cut_by_torch,
    **{way: partial(measured, parallel=way) for way in ("ddp", "fsdp2", "tp")},
}


if __name__ == "__main__":
    main(TASKS, Replicas)
