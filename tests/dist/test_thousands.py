"""Thousands of ranks without their processes: the code that each runs, one after the other.

Only what connects them is a stand-in: sums over the ranks, which are known beforehand, and a shelf for what
each gives to the others.

Letters: N ranks, S coordinates of one rank.
"""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from reticent.bounded import BoundedSum
from reticent.dist import Replicas, Shards, _replicas
from reticent.dist._sharded_model import ScatteredSums
from reticent.noise import CipherNoise
from reticent.plan import Plan
from reticent.records import FlatClipping
from reticent.sample import PoissonSampler
from reticent.train._open_step import OpenStep

pytestmark = pytest.mark.dist
SIZES = (1024, 4096)
NOISE_MULTIPLIER, BOUND = 1.7, 0.3


def rank_of(size, rank):
    """One rank of many, without a process group; as `_group` it has what its collectives need."""
    made = object.__new__(Replicas)
    made.__dict__.update(rank=rank, size=size, device=torch.device("cpu"), _group=rank)
    return made


def sharded_rank_of(size, rank):
    made = object.__new__(Shards)
    made.__dict__.update(rank=rank, size=size, _replicas=rank_of(size, rank), _group=rank, _failed=False)
    return made


# -- sampling --------------------------------------------------------------------------------------


def batches(num_steps=3):
    """Logical batches of about 3,000 units of 60,000, and an empty one."""
    plan = Plan(
        sampler=PoissonSampler(num_examples=60_000, expected_batch_size=3_000),
        num_steps=num_steps,
        noise_multiplier=1.0,
        clipping=FlatClipping(max_norm=1.0),
        delta=1e-6,
        budget=None,
    )
    drawn = [batch.indices for batch in plan.batches(torch.zeros(60_000))]
    return [*drawn, drawn[0][:0]]


@pytest.mark.parametrize("size", SIZES)
def test_each_unit_is_on_one_rank_and_shares_differ_by_at_most_one(size):
    for indices in batches():
        shares = [rank_of(size, rank).share(indices) for rank in range(size)]
        assert (np.sort(np.concatenate(shares)) == indices).all()  # none twice, none left out
        sizes = np.array([len(share) for share in shares])
        assert sizes.max() - sizes.min() <= 1 and (np.diff(sizes) <= 0).all()
        assert (sizes == 0).sum() == max(0, size - len(indices))  # of 4,096 ranks, about 1,100


@pytest.mark.parametrize("make", [rank_of, sharded_rank_of])
def test_chunks_are_the_share_with_a_seed_of_their_own_and_under_fsdp2_all_run_as_many(make):
    size, indices = 1024, batches(1)[0]
    seen, numbers, passes = [], [], set()
    for rank in range(size):
        got: list[Any] = []
        owner = SimpleNamespace(
            ranks=make(size, rank),
            physical_batch_size=2,
            clip_norms=(),
            _holding=SimpleNamespace(zeros=lambda _: {}),
            _watch=SimpleNamespace(trainable={}),
            _rows=lambda batch, rows, number, got=got: got.append((rows, number)) or torch.zeros(1),
        )
        step = OpenStep(cast(Any, owner), cast(Any, SimpleNamespace(indices=indices, step=0)))
        for _ in step.chunks():
            if step._counts:
                seen.append(got[-1][0])
            step._pending = None
        numbers += [number for _, number in got]
        passes.add(len(got))
    assert (np.sort(np.concatenate(seen)) == indices).all()
    assert len(set(numbers)) == len(numbers)
    assert len(passes) == 1 or make is rank_of


# -- noise -----------------------------------------------------------------------------------------


def streams_apart(sources, *, num_blocks=8):
    """Whether no 16 bytes of a keystream, two normals, are in another one, or twice in its own."""
    seen: set[bytes] = set()
    for source in sources:
        source._keystream.read_into(memoryview(words := bytearray(16 * num_blocks)))
        seen |= {bytes(words[start : start + 16]) for start in range(0, len(words), 16)}
    return len(seen) == len(sources) * num_blocks


@pytest.mark.parametrize("size", SIZES)
def test_no_two_ranks_draw_the_same_noise(size):
    assert streams_apart([CipherNoise.fresh() for _ in range(size)])
    known = [CipherNoise.reproducible(7, start=s, rank=r) for r in range(size) for s in (0, 1)]
    assert streams_apart(known)
    twice = [CipherNoise.reproducible(7, rank=min(r, size - 2)) for r in range(size)]
    assert not streams_apart(twice)  # one pair among them


def right_noise(noise_NS, std):
    """Whether the noise has this standard deviation in total, and no two ranks the same.

    False alarms: 2e-9 for the variance; 6.5 standard errors of a correlation are 8e-11 for each of 8e6 pairs.
    """
    num = noise_NS.numel()
    right = abs(float(noise_NS.std()) / std - 1) < 6 / (2 * num) ** 0.5
    rows_NS = (noise_NS / noise_NS.norm(dim=1, keepdim=True)).float()
    gram_NN = (rows_NS @ rows_NS.T).fill_diagonal_(0.0)
    return right and float(gram_NN.abs().max()) < 6.5 / noise_NS.shape[1] ** 0.5


def replicas_noise(monkeypatch, size, length, source_of):
    """What all ranks would have of a noised sum, less the sum; rank r's part of it is r modulo 5."""
    total, shelf = float(sum(r % 5 for r in range(size))), torch.full((size, length // size), torch.nan)

    def reduce_scatter(mine, parts, group):
        assert len(parts) == size * len(mine) and parts[0] == parts[-1] == group % 5
        mine.fill_(total)

    def all_gather(everyone, mine, group):
        shelf[group] = mine

    monkeypatch.setattr(_replicas, "_reduce_scatter", reduce_scatter)
    monkeypatch.setattr(_replicas, "_all_gather", all_gather)
    for rank in range(size):
        part = {"w": torch.full((length,), float(rank % 5))}
        bounded = BoundedSum(total=part, bound=BOUND, norms=torch.empty(0))
        rank_of(size, rank).add_noise(bounded, noise_multiplier=NOISE_MULTIPLIER, source=source_of(rank))
    return shelf.double() - total


@pytest.mark.parametrize("size", SIZES)
def test_the_noise_of_all_ranks_in_total_is_that_of_one_process(monkeypatch, size):
    std = NOISE_MULTIPLIER * BOUND
    noise_NS = replicas_noise(monkeypatch, size, 64 * size, lambda rank: CipherNoise.fresh())
    assert right_noise(noise_NS, std)
    for wrong in (0.5, 2.0):
        assert not right_noise(noise_NS, std * wrong**0.5)
    assert not right_noise(noise_NS * (1 + 1 / 20), std)


def test_noise_that_two_of_many_ranks_share_would_be_noticed(monkeypatch):
    def source_of(rank):
        return CipherNoise.reproducible(0, rank=min(rank, 1022))

    assert not right_noise(replicas_noise(monkeypatch, 1024, 65536, source_of), NOISE_MULTIPLIER * BOUND)


class Sum:
    """Stands in for a rank of many whose parts of every sum are alike: each has r times the same."""

    def __init__(self, size, rank):
        self.size, self.rank = size, rank

    def scatter_sum(self, mine, parts):
        rows_NS = parts.view(self.size, -1)
        marks = torch.arange(rows_NS.shape[1]) >= rows_NS.shape[1] - 8
        times = torch.where(marks, float(self.size), float(self.size * (self.size - 1) // 2))
        scale = torch.where(
            marks, 1.0, max(self.rank, 1)
        )  # rank 0's part is not zero here, and counts as rank 1's
        mine.copy_(rows_NS[self.rank] / scale * times)


def test_shards_of_thousands_of_ranks_make_up_the_sum_with_noise_once_for_each_coordinate():
    """Units with fewer rows than ranks, as many, and more; the oracle is torch.chunk, as FSDP2 shards."""
    size, shapes = 1024, {"few": (5, 3), "as-many": (1024, 8), "more": (2500, 8), "odd": (3001, 2)}
    torch.manual_seed(0)
    base = {n: torch.randn(*shape, dtype=torch.float64) for n, shape in shapes.items()}
    chunks = {n: t.chunk(size) for n, t in base.items()}
    pieces: dict[str, list[torch.Tensor]] = {n: [] for n in shapes}
    for rank in range(size):
        local = {n: c[rank] if rank < len(c) else base[n][:0] for n, c in chunks.items()}
        sharded = {
            n: SimpleNamespace(
                requires_grad=True, shape=base[n].shape, to_local=lambda t=t: torch.zeros_like(t)
            )
            for n, t in local.items()
        }
        model = SimpleNamespace(sharded=sharded, units=[("few", "more"), ("as-many", "odd")])
        sums = ScatteredSums(cast(Any, model), within=cast(Any, Sum(size, rank)))
        for name, t in base.items():
            with sums.adding(name) as into:
                into.add_(t, alpha=max(rank, 1))
        bounded = BoundedSum(total=sums, bound=BOUND, norms=torch.empty(0))
        noised = sharded_rank_of(size, rank).add_noise(
            bounded, noise_multiplier=NOISE_MULTIPLIER, source=CipherNoise.fresh()
        )
        for name, t in noised.items():
            assert t.shape == local[name].shape
            pieces[name].append(t)
    times = size * (size - 1) // 2
    noise = torch.cat([(torch.cat(pieces[n]) - times * base[n]).flatten() for n in shapes])
    assert len(noise) == sum(t.numel() for t in base.values())
    error, std = 6 / (2 * len(noise)) ** 0.5, NOISE_MULTIPLIER * BOUND
    assert abs(float(noise.std()) / std - 1) < error < 2**0.5 - 1 < 1  # twice or half the variance is far out
