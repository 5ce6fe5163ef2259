"""Failure modes 37 to 46: which examples take part. Each test plants the fault, or measures what shows it.

False alarms of the statistical tests: 1e-6 each, unseeded.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, Dataset, IterableDataset

from reticent.account.ledger import read_ledger
from reticent.clipping import FlatClipping
from reticent.errors import ConfigError, DataError, StepError
from reticent.plan import LogicalBatch, Plan
from reticent.records import NeighbouringRelation, SamplingScheme
from reticent.sample import PoissonSampler, SampleStream
from reticent.train import TrainSettings, train
from tests.train.joint import (
    cross_entropy,
    make_data,
    make_model,
    make_plan,
    make_private,
    take,
    weights_of,
    with_rows,
)

ALPHA = 1e-6


def draws(*, n=200, size=20.0, times=2000):
    """Which of n examples took part in each of many draws, (times, n) of bools."""
    sampler, stream = PoissonSampler(num_examples=n, expected_batch_size=size), SampleStream.fresh()
    taken = np.zeros((times, n), dtype=bool)
    for row in taken:
        row[sampler.draw(n, stream)] = True
    return taken


def looks_poisson(taken, q):
    """Whether inclusions, their pairs and the batch sizes have the law of independent coins."""
    times, n = taken.shape
    counts = taken.sum(0)
    per_example = ((counts - times * q) ** 2 / (times * q * (1 - q))).sum()
    pairs = (taken[:, :-1] & taken[:, 1:]).sum()
    expected = times * (n - 1) * q * q
    sizes = taken.sum(1)
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], times - 1)
    return bool(
        stats.chi2.sf(per_example, n) > ALPHA
        and abs(pairs - expected) < 6 * math.sqrt(expected)
        and low < sizes.var(ddof=1) * (times - 1) / (n * q * (1 - q)) < high
    )


def shuffled(*, n=200, size=20, times=2000):
    taken = np.zeros((times, n), dtype=bool)
    rng = np.random.default_rng()
    for start in range(0, times, n // size):
        order = rng.permutation(n).reshape(-1, size)
        for row, members in zip(taken[start:], order, strict=False):
            row[members] = True
    return taken


def test_fm_37_shuffled_batches_are_refused_and_draws_are_independent_coins(tmp_path):
    """Batches of a shuffling loader are accounted as Poisson samples.

    Severity: critical
    Prevented: a step takes batches of its plan only, and the accountant's mechanism is the sampler's own.
    """
    assert looks_poisson(draws(), 0.1)
    assert not looks_poisson(shuffled(), 0.1), "the check would not see a shuffle"
    private = make_private(tmp_path)
    loader = DataLoader(make_data(), batch_size=16, shuffle=True)
    for batch in (next(iter(loader)), loader):
        with pytest.raises(StepError, match="does not come from this plan"), private.step(batch):
            pass
    assert private.num_steps == 0


def test_fm_38_the_accountants_probability_is_the_very_float_that_is_drawn_with():
    """The sampling rate is guessed from a loader's length, and off by orders of magnitude.

    Severity: critical
    Prevented: sampler, draw, ledger and accountant read one field.
    """
    sampler = PoissonSampler(num_examples=67_349, expected_batch_size=1024)
    assert sampler.mechanism(1.0).sampling_prob == sampler.sampling_prob == 1024 / 67_349
    with pytest.raises(ConfigError, match="is not expected_batch_size / num_examples"):
        PoissonSampler(num_examples=100, expected_batch_size=10, sampling_prob=0.11)


def test_fm_39_tiny_probabilities_are_drawn_exactly():
    """Uniform numbers of 24 bits are compared with q: 1e-7 becomes 1.2e-7.

    Severity: critical
    Prevented: a binomial count in float64, then a uniform subset of that size.
    """
    q, n, times = 1e-7, 40_000_000, 1000
    sampler = PoissonSampler(sampling_prob=q, expected_batch_size=4)
    stream = SampleStream.fresh()
    total = sum(len(sampler.draw(n, stream)) for _ in range(times))
    expected = q * n * times
    assert abs(total - expected) < 5 * math.sqrt(expected)
    assert abs(1.192e-7 * n * times - expected) > 10 * math.sqrt(expected), (
        "the check would not see the fault"
    )


def test_fm_40_two_processes_with_equal_seeds_draw_independently():
    """Ranks share a seed, pick the same positions of their shards, and reveal each other's draws.

    Severity: critical
    Prevented: rank 0 alone draws; a stream is keyed by the operating system at each draw.
    """
    sampler = PoissonSampler(num_examples=20_000, expected_batch_size=2000)
    seen = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        seen.append(set(sampler.draw(20_000, SampleStream.fresh()).tolist()))
    both = 20_000 * 0.1**2
    assert abs(len(seen[0] & seen[1]) - both) < 5 * math.sqrt(both)


def test_fm_41_an_empty_batch_is_a_step_of_pure_noise(tmp_path):
    """An empty batch is skipped, repeated, or crashes: the number of updates depends on the data.

    Severity: critical
    Prevented: it is a step like any other: noise on a sum of zero, entered in the ledger.
    """
    data = make_data(num_examples=10)
    plan = Plan(
        sampler=PoissonSampler(num_examples=10, expected_batch_size=0.2),
        num_steps=60,
        noise_multiplier=1.0,
        clipping=FlatClipping(max_norm=1.0),
        delta=1e-3,
    )
    model = make_model()
    private = make_private(tmp_path, model=model, plan=plan)
    seen, sizes = set(), []
    for batch in plan.batches(data):
        sizes.append(len(batch.indices))
        take(private, batch)
        seen.add(tuple(weights_of(model).tolist()))
    assert 0 in sizes
    assert len(seen) == private.ledger.num_steps == 60


@pytest.mark.parametrize("size", [32, 33, 37, 99])
def test_fm_42_as_many_steps_are_performed_as_were_planned(size, tmp_path):
    """A last partial batch is dropped, or an epoch's length is rounded: steps differ from those accounted.

    Severity: serious
    Prevented: the number of steps is an integer of the plan; there are no epochs below it.
    """
    plan = make_plan(num_steps=7, num_examples=100, batch=size)
    assert len(list(plan.batches(make_data(num_examples=100)))) == 7
    with pytest.raises(ConfigError, match="num_steps"):
        make_plan(num_steps=100 / size)


def test_fm_43_neither_a_sampling_key_nor_a_batch_size_is_shown_or_kept(tmp_path):
    """The sampling seed stands in the configuration, or drawn indices and batch sizes in the log.

    Severity: critical
    Prevented: draws have no seed, and no file, text or error of a run holds a realised batch size.
    """
    plan, data = make_plan(), make_data()
    batch = with_rows(next(plan.batches(data)), range(0, 37))
    private = make_private(tmp_path, plan=plan)
    with private.step(batch) as step:
        texts = [repr(batch), repr(step), repr(private), repr(SampleStream.fresh())]
        for chunk in step.chunks():
            step.backward(cross_entropy, chunk)
    texts.append((tmp_path / "run" / "ledger.jsonl").read_text())
    assert not any("37" in text.replace(private.ledger.run_id, "").split('"prev"')[0] for text in texts[:4])
    assert "indices" not in "".join(texts) and '"size"' not in "".join(texts)
    assert LogicalBatch.__dataclass_fields__["indices"].repr is False


def test_fm_44_examples_are_drawn_in_one_place_and_transforms_from_one_generator(tmp_path):
    """Loader workers hold equal copies of a generator, and augment alike.

    Severity: minor
    Prevented: sampling and transforms run in the process of the step, each chunk with its own generator.
    """
    draws = []

    def transform(rows, generator):
        draws.append(torch.rand(1, generator=generator).item())
        return rows

    data = make_data()
    private = make_private(tmp_path, transform=transform, physical_batch_size=4)
    batches = private.plan.batches(data)
    for _ in range(2):
        before = len(draws)
        take(private, with_rows(next(batches), range(16)))
        steps = draws[-4:]
        assert len(set(steps)) == 4 and len(draws) >= before + 4
    assert len(set(draws[-8:])) == 8


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))


class StreamWithLength(Stream):
    def __len__(self):
        return 64


STREAMS = {"dataset": Stream(), "generator": (i for i in range(10)), "with length": StreamWithLength()}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_fm_45_a_stream_is_refused(stream):
    """A stream cannot be sampled at random, and is accounted as if it had been.

    Severity: critical
    Prevented: a data set without a length or without access by index is refused.
    """
    with pytest.raises(DataError, match=r"has no length|is a stream"):
        make_plan().batches(stream)


class OneBad(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index == 40:
            raise OSError("cannot read")
        return torch.ones(6), 0


def test_fm_46_a_record_that_cannot_be_read_is_neither_skipped_nor_replaced(tmp_path):
    """A corrupt record is skipped, or its neighbour is taken twice.

    Severity: serious
    Prevented: the step stops with the reader's own error before anything is spent; nothing takes the
        record's place. That a run stops is a bit that epsilon does not cover: let readers return zeros.
    """
    private = make_private(tmp_path)
    batch = next(private.plan.batches(OneBad()))
    with pytest.raises(OSError, match="cannot read"):
        take(private, with_rows(batch, [3, 40]))
    assert private.num_steps == 0
    take(private, with_rows(batch, [3, 41]))
    assert private.num_steps == 1


def test_the_ledger_of_a_whole_run_names_the_sampler_that_drew(tmp_path):
    model = make_model()
    train(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        plan=make_plan(num_steps=4),
        dataset=make_data(),
        loss_per_example=cross_entropy,
        out=tmp_path / "run",
        settings=TrainSettings(),
    )
    view = read_ledger(tmp_path / "run" / "ledger.jsonl")
    ((mechanism, count),) = view.segments()
    assert (mechanism.scheme, mechanism.sampling_prob, count) == (SamplingScheme.POISSON, 0.25, 4)
    assert view.relation is NeighbouringRelation.ZERO_OUT
