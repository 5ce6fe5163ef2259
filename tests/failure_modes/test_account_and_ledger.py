"""Failure modes 47 to 65: what is public, what is counted, and the number. Each test plants the fault."""
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportCallIssue=false

import inspect
import json
import os
import stat

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import reticent
from reticent.account import (
    RandomTrials,
    calibrate_noise_multiplier,
    choice_epsilon,
    compose_runs,
    epsilon,
)
from reticent.account.ledger import Ledger, read_ledger
from reticent.clip import ClipEngine
from reticent.clipping import FlatClipping
from reticent.errors import BudgetExhausted, ConfigError, LedgerError, UnsupportedModel
from reticent.plan import Plan
from reticent.records import Budget, Mechanism, NeighbouringRelation, SamplingScheme
from reticent.report import write_report
from reticent.sample import PoissonSampler
from reticent.train import TrainSettings, resume, train
from tests.support.audit import epsilon_shown, error_limit, separation
from tests.train.joint import (
    NoNoise,
    cross_entropy,
    make_data,
    make_model,
    make_plan,
    make_private,
    take,
    weights_of,
    with_rows,
)


def poisson(q, sigma):
    return Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=q, noise_multiplier=sigma)


def full(sigma):
    return Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=sigma)


CIFAR = poisson(4096 / 50_000, 3.0)


def run(out, *, num_steps=4, stop_after=None, go_on=False, checkpoint_every=100, **options):
    """Train in `out`, or go on there; stopped inside a step once `stop_after` more are done."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    done = []

    def count(*_):
        if stop_after is not None and len(done) >= stop_after:
            raise KeyboardInterrupt
        done.append(1)

    optimizer.register_step_pre_hook(count)
    rest = {"dataset": make_data(), "loss_per_example": cross_entropy, "out": out, **options}
    try:
        if go_on:
            return resume(model, optimizer, **rest)
        settings = TrainSettings(checkpoint_every=checkpoint_every)
        return train(model, optimizer, plan=make_plan(num_steps=num_steps), settings=settings, **rest)
    except KeyboardInterrupt:
        return None


def steps_in(out):
    return read_ledger(out / "ledger.jsonl").num_steps


def test_fm_47_the_divisor_is_a_public_constant(tmp_path):
    """The sum is divided by a number that depends on how many examples there are, or were drawn.

    Severity: critical
    Prevented: by the plan's expected batch size, whatever was drawn, under either neighbouring relation.
    """
    moves = []
    for name, sampler, size in (
        ("n", PoissonSampler(sampling_prob=0.25, expected_batch_size=16), 64),
        ("n - 1", PoissonSampler(sampling_prob=0.25, expected_batch_size=16), 63),
        ("public n", PoissonSampler(num_examples=64, expected_batch_size=16), 64),
    ):
        for drawn in (1, 40):
            model = make_model()
            plan = Plan(
                sampler=sampler,
                num_steps=2,
                noise_multiplier=1.0,
                clipping=FlatClipping(max_norm=1e-3),
                delta=1e-3,
            )
            private = make_private(tmp_path / f"{name}{drawn}", model=model, plan=plan, noise=NoNoise())
            x, y = make_data(num_examples=size).tensors
            alike = torch.utils.data.TensorDataset(x[:1].expand(size, -1), y[:1].expand(size))
            batch = next(plan.batches(alike))  # rows of one and the same gradient
            before = weights_of(model)
            take(private, with_rows(batch, range(drawn)))
            moves.append(float((weights_of(model) - before).norm()) / drawn)
    assert max(moves) == pytest.approx(min(moves), rel=1e-3)
    assert max(moves) == pytest.approx(1e-3 / 16, rel=1e-3)


def test_fm_48_a_public_number_of_examples_is_said_to_be_public(tmp_path):
    """The number of examples steers the run (delta, divisor, sampling rate) and is not said to be public.

    Severity: serious
    Prevented: it is public exactly if the plan names it; relation and report say so; the data are checked.
    """
    run(tmp_path / "run")
    page = write_report(tmp_path / "run").path.read_text()
    assert "contributes nothing" in page and "zero-out-one" in page
    with pytest.raises(ConfigError, match="public constant"):
        make_plan().batches(make_data(num_examples=63))
    secret = PoissonSampler(sampling_prob=0.1, expected_batch_size=4)
    assert secret.relation is NeighbouringRelation.ADD_OR_REMOVE
    assert secret.num_examples is None


def test_fm_49_encodings_do_not_depend_on_the_data(tmp_path):
    """Means, vocabularies or labels are computed from the private rows, and not paid for.

    Severity: serious
    Prevented: our tables are encoded by published constants, each row by itself; a transform that lets
        one row change another is refused. What was done to the data before must be public: the docs say so.
    """
    from reticent.errors import CoupledExamples

    def standardised(rows, generator):
        x, y = rows
        return (x - x.mean(0)) / (x.std(0) + 1e-6), y

    private = make_private(tmp_path, transform=standardised)
    with pytest.raises(CoupledExamples, match="lets one example change another"):
        take(private, with_rows(next(private.plan.batches(make_data())), [1, 2]))
    assert private.num_steps == 0


def test_fm_50_no_private_score_chooses_the_weights(tmp_path):
    """A private validation set picks the checkpoint to keep, or when to stop.

    Severity: serious
    Prevented: the weights kept are those of the last step (and their average); nothing looks at a score.
    """
    assert not [
        name
        for function in (train, resume, TrainSettings)
        for name in inspect.signature(function).parameters
        if any(word in name for word in ("early", "patience", "best", "validation"))
    ]
    result = run(tmp_path / "run", num_steps=3)
    assert result.num_steps == 3 and result.weights == "last"


def test_fm_51_choosing_among_trials_is_charged():
    """The best of many runs is published with the epsilon of one.

    Severity: critical
    Prevented: trials drawn from a stated law are charged by it, and the ledgers of several runs are composed.
    """
    one = epsilon([(CIFAR, 2000)], delta=1e-5)
    assert one.epsilon_rdp == pytest.approx(6.239058990515, rel=1e-9)
    trials = RandomTrials(distribution="geometric", mean=10.0)
    chosen = choice_epsilon([[(CIFAR, 2000)]], trials=trials, delta=1e-5)
    assert chosen.epsilon == pytest.approx(10.752284929613, rel=1e-6)
    with pytest.raises(ConfigError, match="mean"):
        RandomTrials(distribution="geometric", mean=0.5)


def test_fm_52_a_delta_that_promises_nothing_is_pointed_out():
    """Delta is 1e-5 for a million examples: to publish ten of them at random would be allowed.

    Severity: serious
    Prevented: a delta above 1/N is warned of in plans, on the command line and in reports.
    """

    def plan(delta):
        return Plan(
            sampler=PoissonSampler(num_examples=1_000_000, expected_batch_size=1000),
            num_steps=10,
            noise_multiplier=1.0,
            clipping=FlatClipping(max_norm=1.0),
            delta=delta,
        )

    assert any("above 1/N" in text for text in plan(1e-5).warnings())
    assert plan(1e-7).warnings() == ()


def test_fm_53_epsilon_is_that_of_the_steps_performed(tmp_path):
    """Epsilon is computed for the planned steps, and more were run, or a count of them was a constant.

    Severity: critical
    Prevented: it comes from the ledger; the step beyond the plan is refused.
    """
    plan = make_plan(num_steps=3)
    private = make_private(tmp_path, plan=plan)
    batches = list(plan.batches(make_data()))
    for done, batch in enumerate(batches, start=1):
        take(private, batch)
        assert private.epsilon() == epsilon([(plan.mechanism, done)], delta=1e-3, relation=plan.relation)
    with pytest.raises(BudgetExhausted):
        take(private, batches[0])
    assert epsilon([(CIFAR, 2500)], delta=1e-5).epsilon == pytest.approx(6.580, abs=1e-3)
    assert epsilon([(CIFAR, 2000)], delta=1e-5).epsilon == pytest.approx(5.7743, abs=1e-3)


def test_fm_54_a_step_is_on_disk_before_it_has_an_effect(tmp_path, monkeypatch):
    """A crash between the release of a step and its entry in the account loses the entry.

    Severity: critical
    Prevented: the entry is durable first. A crash anywhere later leaves a step that counts and did nothing.
    """
    real = os.fsync
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real(fd))[1])
    private = make_private(tmp_path)
    ledger = tmp_path / "run" / "ledger.jsonl"
    seen = []

    def look(*_):
        seen.append((read_ledger(ledger).num_steps, len(synced)))
        raise KeyboardInterrupt

    private.optimizer.register_step_pre_hook(look)
    before, calls = weights_of(private.model), len(synced)
    with pytest.raises(KeyboardInterrupt):
        take(private, next(private.plan.batches(make_data())))
    assert seen[0][0] == 1 and seen[0][1] > calls
    assert torch.equal(weights_of(private.model), before) and private.num_steps == 1


def test_fm_55_going_back_to_a_checkpoint_forgets_no_step(tmp_path):
    """A run goes on from an older checkpoint, and the steps after it are forgotten.

    Severity: critical
    Prevented: the ledger only grows: lost steps stay spent, and the run ends when the plan's are used up.
    """
    out = tmp_path / "run"
    run(out, num_steps=8, stop_after=5, checkpoint_every=2)
    assert steps_in(out) == 6  # five done, and the one that was stopped
    run(out, go_on=True)
    view = read_ledger(out / "ledger.jsonl")
    assert (view.num_steps, view.num_lost, view.num_resumes) == (8, 2, 1)
    assert epsilon(view.segments(), delta=view.delta).epsilon == make_plan(num_steps=8).epsilon().epsilon


def test_fm_56_a_changed_mechanism_is_a_segment_of_its_own(tmp_path):
    """Noise or sampling change during a run, and the accountant keeps those of its start.

    Severity: critical
    Prevented: each entry names its mechanism; parameters that change in mid-run are refused.
    """
    with Ledger.create(
        tmp_path / "ledger.jsonl",
        run_id="r",
        relation=NeighbouringRelation.ZERO_OUT,
        delta=1e-5,
        num_steps=20,
        public={},
    ) as ledger:
        for sigma in (1.0, 2.0):
            for _ in range(10):
                ledger.append_step(poisson(0.1, sigma))
        assert ledger.segments() == ((poisson(0.1, 1.0), 10), (poisson(0.1, 2.0), 10))
        both = epsilon(ledger.segments(), delta=1e-5).epsilon
    alone = [epsilon([(poisson(0.1, sigma), 20)], delta=1e-5).epsilon for sigma in (2.0, 1.0)]
    assert alone[0] < both < alone[1]


def test_fm_57_runs_on_the_same_data_add_up(tmp_path):
    """A second run on the same data begins a fresh account, and each states its own epsilon alone.

    Severity: critical
    Prevented: the ledgers of several runs compose to one statement; the docs say that they must.
    """
    for name in "ab":
        run(tmp_path / name)
    views = [read_ledger(tmp_path / name / "ledger.jsonl") for name in "ab"]
    together = compose_runs(views)
    assert together.num_steps == 8
    assert together.epsilon > epsilon(views[0].segments(), delta=1e-3).epsilon * 1.2
    assert together.epsilon == epsilon([(make_plan().mechanism, 8)], delta=1e-3).epsilon
    with pytest.raises(LedgerError, match="given twice"):
        compose_runs([views[0], views[0]])


def test_fm_58_replace_one_costs_twice_the_noise():
    """Replacing an example is claimed with the numbers of adding one: the sum moves twice as far.

    Severity: critical
    Prevented: replace-one is accounted with twice the sensitivity, by PLD only.
    """
    spent = epsilon([(full(2.0), 1)], delta=1e-5, relation=NeighbouringRelation.REPLACE_ONE).epsilon
    assert spent == pytest.approx(4.3771780957, abs=1e-4)
    sampled = epsilon([(CIFAR, 2000)], delta=1e-5, relation=NeighbouringRelation.REPLACE_ONE).epsilon
    assert 12.7695403266 <= sampled <= 12.7695403266 + 2e-3
    with pytest.raises(ConfigError, match="relation"):
        epsilon([(full(2.0), 1)], delta=1e-5, relation="replace-two")


@pytest.mark.parametrize(
    ("q", "sigma", "num_steps", "by_limit", "truth"),
    [(1024 / 67_349, 0.8, 198, 1.622, 2.56018), (4096 / 50_000, 3.0, 2000, 5.711, 5.77427)],
)
def test_fm_59_no_accountant_approximates(q, sigma, num_steps, by_limit, truth):
    """An accountant takes the limit of many steps for the truth (Gaussian DP), and reports too little.

    Severity: critical
    Prevented: only upper bounds are offered; none has another name.
    """
    report = epsilon([(poisson(q, sigma), num_steps)], delta=1e-5)
    assert report.epsilon >= truth > by_limit
    assert report.accountant.split(" (")[0] in {"PLD", "RDP", "exact Gaussian"}
    assert not [name for name in dir(reticent.account) if "gdp" in name.lower() or "clt" in name.lower()]


def test_fm_60_rounding_in_fourier_space_is_answered_for():
    """At tiny delta and many steps the rounding of a Fourier transform makes epsilon too small.

    Severity: serious
    Prevented: delta is lowered by a margin for it, or the bound is not used. (The margin is measured.)
    """
    delta, truth = 1e-10, 34.616
    report = epsilon([(poisson(0.01, 1.0), 100_000)], delta=delta)
    assert report.epsilon >= truth
    tiny = epsilon([(poisson(0.01, 1.0), 100_000)], delta=1e-11)
    assert tiny.epsilon_pld is None and tiny.epsilon == tiny.epsilon_rdp
    assert any("PLD refused" in note for note in tiny.notes)


@pytest.mark.parametrize("target", [0.05, 1.0, 3.0])
def test_fm_61_the_printed_noise_keeps_to_the_budget(target):
    """Calibration stops anywhere near its target, or the number that is printed was rounded down.

    Severity: serious
    Prevented: noise is rounded up to six digits and evaluated again: at most the target, 0.999 of it or more.
    """
    sigma = calibrate_noise_multiplier(
        budget=Budget(epsilon=target, delta=1e-5),
        scheme=SamplingScheme.POISSON,
        sampling_prob=0.05,
        num_steps=200,
    )
    printed = float(f"{sigma:.6g}")
    assert printed == sigma
    assert 0.999 * target <= epsilon([(poisson(0.05, printed), 200)], delta=1e-5).epsilon <= target


ALLOWED = {"step", "split", "weights", "accuracy", "loss", "clip_norms"}


def test_fm_62_files_and_logs_hold_what_may_be_published(tmp_path):
    """Losses, gradient norms, batch sizes or accuracies on private rows are logged.

    Severity: serious
    Prevented: what a run writes is a closed list; unsafe figures go to a file of their own, by request.
    """
    from reticent.train import Evaluation

    def scores(model, rows):
        return {"accuracy": (model(rows[0]).argmax(1) == rows[1]).float()}

    evaluation = Evaluation(dataset=make_data(seed=9), scores=scores)
    run(tmp_path / "run", evaluation=evaluation)
    assert not (tmp_path / "run" / "not-private.jsonl").exists()
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert set(entry) <= ALLOWED and entry["split"] == "test"
    for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry.get("kind") is None:
            assert set(entry) == {"hash"}


class RunningMean(nn.Module):
    """Remembers an average of its inputs in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x):
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x


def test_fm_63_buffers_that_the_data_change_are_refused():
    """A forward writes statistics of private rows into a buffer, which is saved without noise.

    Severity: critical
    Prevented: a buffer or parameter that changes while gradients are computed is an error.
    """
    model = nn.Sequential(nn.Linear(6, 5), RunningMean(), nn.Linear(5, 3))
    engine = ClipEngine(model, max_norm=1.0)
    with pytest.raises(UnsupportedModel, match="mean"):
        engine.clipped_sum(lambda x: model(x).square().sum(1), torch.randn(6, 6))


def test_fm_64_a_checkpoint_holds_weights_and_public_numbers_only(tmp_path):
    """A checkpoint holds raw gradients, a generator's state or a key.

    Severity: critical
    Prevented: an allowed list, in safetensors and JSON: nothing is pickled, and nothing of a batch enters.
    """
    from reticent.train._checkpoint import load_tensors

    run(tmp_path / "run")
    (path, *_rest) = sorted((tmp_path / "run").glob("checkpoint-*.safetensors"))[-1:]
    tensors, header = load_tensors(path)
    model = make_model()
    assert {name.split("/", 1)[0] for name in tensors} <= {"model", "ema", "optimizer"}
    assert {n.removeprefix("model/") for n in tensors if n.startswith("model/")} == set(model.state_dict())
    assert set(header) == {
        "format", "step", "updates", "ledger_head", "seconds", "clip_norms", "optimizer",
    }  # fmt: skip
    release, about = load_tensors(tmp_path / "run" / "weights.safetensors")
    assert set(release) == set(model.state_dict())
    assert set(about) == {"step", "ledger_head"}  # its place in the ledger, whose lines are public
    for path in (tmp_path / "run").iterdir():
        assert not stat.S_IMODE(path.stat().st_mode) & 0o002


def test_fm_65_the_audit_sees_nothing_where_there_is_nothing():
    """An auditor reports leakage where there is none, or none where there is some.

    Severity: minor
    Prevented: ours is tried on data without signal, and on the exact Gaussian.
    """
    rng = np.random.default_rng(1)

    def shown(mu, size):
        return separation(rng.normal(size=size), mu + rng.normal(size=size))

    null = [shown(0.0, 100) for _ in range(200)]
    assert sum(value > 0 for value in null) <= stats.binom.ppf(1 - 1e-6, 200, 0.05)
    real = [shown(1.0, 4000) for _ in range(20)]
    assert sum(value > 1.0 for value in real) <= stats.binom.ppf(1 - 1e-6, 20, 0.05)
    assert np.median(real) > 0.8
    assert error_limit(3, 1000) == pytest.approx(0.00874202, abs=1e-8)
    claim = epsilon([(full(1.0), 1)], delta=1e-5).epsilon
    observed = rng.normal(size=4000), 1.0 + rng.normal(size=4000)
    assert 0.6 * claim < epsilon_shown(*observed, sampling_prob=1.0, num_steps=1, delta=1e-5) < 1.1 * claim
