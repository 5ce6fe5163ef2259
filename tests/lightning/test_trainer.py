"""`PrivateTrainer` on tiny modules: the joint's own numbers, the ledger's epsilon, nothing ignored."""

import copy
import json
import types
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

pytest.importorskip("lightning")

import lightning.pytorch as L
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from reticent import FlatClipping, Plan, PoissonSampler
from reticent.account.ledger import read_run_ledger
from reticent.errors import BudgetExhausted, ConfigError, ReticentError
from reticent.lightning import PrivateTrainer
from reticent.report import verify_run
from reticent.train import train
from tests.support.noted import clip_methods

pytestmark = [
    # Lightning's own: advice on workers and loggers, and what it calls in torch.
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create"),
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, .tensorboardX. has been removed"),
]
N, STEPS = 60, 7


class Module(L.LightningModule):
    """Two layers; `training_step` returns a loss for each row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def data():
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(N, 4, generator=g), torch.randint(0, 3, (N,), generator=g))


def plan(**changes):
    settings = {"num_steps": STEPS, "noise_multiplier": 2.0, "delta": 1e-3, **changes}
    sampler = PoissonSampler(num_examples=N, expected_batch_size=20)
    return Plan(sampler=sampler, clipping=FlatClipping(max_norm=1.0), **settings)


def trainer_of(folder, **settings):
    chosen = {
        "plan": plan(), "out": folder / "run", "accelerator": "cpu", "default_root_dir": folder,
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "log_every_n_steps": 100,
    }  # fmt: skip
    return PrivateTrainer(**{**chosen, **settings})


def refused(folder, module=None, match="", rows=None, code="lightning-module", **settings):
    """Refused by name, and nothing spent or left."""
    with pytest.raises(ReticentError, match=match) as caught:
        trainer_of(folder, **settings).fit(module or Module(), rows or data())
    assert caught.value.code == code
    assert not (folder / "run").exists()


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_weights_are_those_of_the_joint(tmp_path, low_memory, monkeypatch):
    methods = clip_methods(monkeypatch)
    module = Module()
    twin: Any = copy.deepcopy(module)
    trainer = trainer_of(tmp_path, noise_seed=5, low_memory=low_memory)
    trainer.fit(module, DataLoader(data(), batch_size=8, shuffle=True))
    kept = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["settings"]
    assert kept["low_memory"] is low_memory and ("ghost" in methods) == low_memory
    train(
        twin,
        twin.configure_optimizers(),
        plan=plan(),
        dataset=data(),
        loss_per_example=lambda model, rows: F.cross_entropy(model.net(rows[0]), rows[1], reduction="none"),
        out=tmp_path / "joint",
        physical_batch_size=8,
        noise_seed=5,
    )
    for (name, ours), theirs in zip(module.named_parameters(), twin.parameters(), strict=True):
        assert not torch.equal(ours, dict(Module().named_parameters())[name])
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


def test_epsilon_is_the_ledgers_and_nothing_of_training_rows_is_logged(tmp_path):
    trainer = trainer_of(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    trainer.fit(Module(), data(), DataLoader(data(), batch_size=30))
    ledger = read_run_ledger(tmp_path / "run")
    assert ledger.num_steps == trainer.global_step == STEPS and not ledger.reproducible
    assert trainer.current_epoch == 3  # 3 steps are an epoch
    result = trainer.private_result
    assert result is not None and result.private and result.num_lost == 0
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert lines[0].split(",") == ["epoch", "epsilon", "step", "val_loss"]
    spent = [float(line.split(",")[1]) for line in lines[1:] if line.split(",")[1]]
    assert len(spent) == STEPS and spent == sorted(spent)
    assert spent[-1] == pytest.approx(result.epsilon.epsilon, rel=1e-6)
    assert verify_run(tmp_path / "run").problems == ()
    assert "differential" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8").lower()


def test_logging_may_be_off(tmp_path):
    trainer = trainer_of(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=0)
    trainer.fit(Module(), data())
    assert read_run_ledger(tmp_path / "run").num_steps == STEPS


class Fails(Callback):
    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert outputs == {} and repr(batch) == "PrivateBatch()"
        if trainer.global_step == self.after:
            raise RuntimeError("the machine went away")


def keeping(folder):
    return ModelCheckpoint(dirpath=folder / "kept", filename="{step}", every_n_train_steps=2, save_top_k=-1)


def crashed(folder, **settings):
    trainer = trainer_of(folder, callbacks=[keeping(folder), Fails(5)], enable_checkpointing=True, **settings)
    with pytest.raises(RuntimeError, match="went away"):
        trainer.fit(Module(), data())
    return folder / "kept" / "step=4.ckpt"


def test_a_crashed_run_goes_on_and_its_lost_step_stays_spent(tmp_path):
    kept = crashed(tmp_path)
    assert read_run_ledger(tmp_path / "run").num_steps == 5
    module = Module()
    trainer = trainer_of(tmp_path)
    trainer.fit(module, data(), ckpt_path=kept)
    ledger = read_run_ledger(tmp_path / "run")
    assert ledger.num_steps == STEPS and ledger.num_lost == 1
    assert trainer.global_step == STEPS - 1  # updates that the weights hold
    assert trainer.private_result is not None and trainer.private_result.num_lost == 1
    with pytest.raises(BudgetExhausted, match="nothing is left"):
        trainer_of(tmp_path).fit(Module(), data(), ckpt_path=kept)
    assert read_run_ledger(tmp_path / "run").num_steps == STEPS


def test_a_resume_with_another_plan_run_or_checkpoint_is_refused(tmp_path):
    kept = crashed(tmp_path)
    other = tmp_path / "other"
    for match, settings in (
        ("another plan", {"plan": plan(num_steps=STEPS + 1)}),
        ("noise_seed", {"noise_seed": 3}),
    ):
        with pytest.raises(ConfigError, match=match) as caught:
            trainer_of(tmp_path, **settings).fit(Module(), data(), ckpt_path=kept)
        assert caught.value.code == "lightning-resume"
    with pytest.raises(ConfigError, match="another run"):
        trainer_of(tmp_path).fit(Module(), data(), ckpt_path=crashed(other))
    loaded = torch.load(kept)
    assert set(loaded["reticent"]) == {"run_id", "step", "updates", "ledger_head", "clip_norms", "seconds"}
    torch.save({**loaded, "reticent": {**loaded["reticent"], "updates": 3}}, tmp_path / "forged.ckpt")
    with pytest.raises(ReticentError, match="counts 3 updates"):
        trainer_of(tmp_path).fit(Module(), data(), ckpt_path=tmp_path / "forged.ckpt")
    del loaded["reticent"]
    torch.save(loaded, tmp_path / "plain.ckpt")
    with pytest.raises(ConfigError, match="not of a private run"):
        trainer_of(tmp_path).fit(Module(), data(), ckpt_path=tmp_path / "plain.ckpt")
    assert read_run_ledger(tmp_path / "run").num_steps == 5
    with pytest.raises(ConfigError, match="never writes over"):
        trainer_of(tmp_path).fit(Module(), data())


@pytest.mark.parametrize("witness", ["result.json", "weights.safetensors"])
def test_a_run_whose_ledger_was_cut_does_not_go_on(tmp_path, witness):
    trainer = trainer_of(tmp_path, callbacks=[keeping(tmp_path)], enable_checkpointing=True, max_steps=5)
    trainer.fit(Module(), data())
    run = tmp_path / "run"
    for name in {"result.json", "weights.safetensors"} - {witness}:
        (run / name).unlink()
    lines = (run / "ledger.jsonl").read_text(encoding="ascii").splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:-1]), encoding="ascii")
    with pytest.raises(
        ReticentError, match=f"'{witness}' was written after 5 steps, and the ledger holds 4"
    ) as e:
        trainer_of(tmp_path).fit(Module(), data(), ckpt_path=tmp_path / "kept" / "step=4.ckpt")
    assert e.value.code == "ledger-mismatch" and read_run_ledger(run).num_steps == 4


def test_a_training_step_that_averages_logs_or_measures_is_refused(tmp_path):
    class Mean(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).mean()

    class Logs(Module):
        def training_step(self, batch, batch_idx):
            losses = super().training_step(batch, batch_idx)
            self.log("train_loss", losses.mean())
            return losses

    class Measures(Module):
        def __init__(self):
            super().__init__()
            self.accuracy = MulticlassAccuracy(num_classes=3)

        def training_step(self, batch, batch_idx):
            self.accuracy(self.net(batch[0]).detach(), batch[1])
            return super().training_step(batch, batch_idx)

    class Couples(Module):
        def training_step(self, batch, batch_idx):
            losses = super().training_step(batch, batch_idx)
            return losses - losses.mean()

    refused(tmp_path, Mean(), match=r"one loss for each row, shape \(B,\), and returned \(\)")
    refused(tmp_path, Logs(), match=r"calls self\.log")
    refused(tmp_path, Measures(), match="updates the metric 'accuracy'")
    refused(tmp_path, Couples(), match="example", code="loss-mixes-examples")


def test_a_module_that_takes_part_in_optimization_is_refused(tmp_path):
    class Manual(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    class Clips(Module):
        def on_before_optimizer_step(self, optimizer):
            raise AssertionError

        def on_after_batch_transfer(self, batch, dataloader_idx):
            raise AssertionError

    class Two(Module):
        def configure_optimizers(self):
            first, last = self.net[0], self.net[2]
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (first, last)]

    class Pulls(Module):
        def training_step(self, dataloader_iter):
            raise AssertionError

    refused(tmp_path, Manual(), match="automatic_optimization = False")
    refused(tmp_path, Clips(), match="on_before_optimizer_step is never called")
    refused(tmp_path, Clips(), match=r"Clips\.on_after_batch_transfer: rows do not pass there")
    refused(tmp_path, Pulls(), match="dataloader_iter")
    with pytest.raises(RuntimeError, match="multiple optimizers"):  # Lightning's own
        trainer_of(tmp_path).fit(Two(), data())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (lambda: GradientAccumulationScheduler({0: 2}), "GradientAccumulationScheduler: a step takes"),
        (lambda: StochasticWeightAveraging(swa_lrs=0.1), "StochasticWeightAveraging: it reads"),
        (lambda: LearningRateFinder(), "LearningRateFinder: every rate"),
        (lambda: BatchSizeFinder(), "BatchSizeFinder: it trains"),
        (
            lambda: LambdaCallback(on_after_backward=lambda *a: None),
            r"LambdaCallback\.on_after_backward is never called",
        ),
    ],
)
def test_callbacks_around_gradients_are_refused(tmp_path, callback, match):
    refused(tmp_path, match=match, code="lightning-argument", callbacks=[callback()])


class Brings(Module):
    def configure_callbacks(self):
        return [GradientAccumulationScheduler({0: 2})]


class Adds(Module):
    def setup(self, stage):
        self.trainer.callbacks.append(DeviceStatsMonitor())


class AddsLate(Module):
    def on_fit_start(self):
        self.trainer.callbacks.append(LambdaCallback(on_after_backward=lambda *a: None))


@pytest.mark.parametrize("kind", [Brings, Adds, AddsLate])
def test_callbacks_that_a_module_brings_are_refused_too(tmp_path, kind):
    refused(tmp_path, kind(), match="takes the plan's|were drawn|never called", code="lightning-argument")


def listed(module, loss):
    module.kept.append(loss.detach())


def newest(module, loss):
    module.newest = loss.detach().mean()


def summed(module, loss):
    module.total += float(loss.detach().sum())


def metered(module, loss):
    module.meter.seen.append(loss.tolist())


def by_name(module, loss):
    module.by_name["loss"] = loss.tolist()


def measured(module, loss):
    module.metrics["mean"].update(loss.detach())


def counted(module, loss):
    module.num_calls += 1


def in_place(module, loss):
    module.at.add_(loss.detach().sum())


@pytest.mark.parametrize("keep", [listed, newest, summed, metered, by_name, measured, counted, in_place])
def test_what_a_training_step_keeps_in_the_module_is_refused(tmp_path, keep):
    """Lightning's own way to log at an epoch's end: keep each batch's losses, and log their mean there."""

    class Keeps(Module):
        def __init__(self):
            super().__init__()
            self.kept, self.total, self.num_calls, self.at = [], 0.0, 0, torch.zeros(())
            self.by_name, self.meter = {"loss": None}, types.SimpleNamespace(seen=[])
            self.metrics = {"mean": MeanMetric()}

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            keep(self, loss)
            return loss

        def on_train_epoch_end(self):
            self.log("train_loss", torch.cat(self.kept).mean())

    refused(tmp_path, Keeps(), match="changes '.*' of the module", code="lightning-module")


def test_what_validation_keeps_is_public_and_stays(tmp_path):
    class Keeps(Module):
        def __init__(self):
            super().__init__()
            self.kept, self.about = [], {"scale": 1.0}

        def validation_step(self, batch, batch_idx):
            self.kept.append(self.net(batch[0]))  # without gradients, and in inference mode

        def on_validation_epoch_end(self):
            self.log("val_mean", torch.cat(self.kept).mean())

    module = Keeps()
    trainer_of(tmp_path, max_steps=4).fit(module, data(), DataLoader(data(), batch_size=30))
    assert module.kept


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sampler": WeightedRandomSampler([1.0] * N, N)}, "sampler"),
        ({"collate_fn": lambda rows: rows}, "collate_fn"),
        ({"drop_last": True}, "drop_last"),
        ({"shuffle": True, "generator": torch.Generator()}, "generator"),
        ({"batch_size": None}, "collate_fn"),
    ],
)
def test_a_loader_that_chooses_or_changes_rows_is_refused(tmp_path, settings, match):
    rows = DataLoader(data(), **{"batch_size": 8, **settings})
    refused(tmp_path, rows=rows, match=match, code="lightning-argument")


def test_two_numbers_of_rows_at_once_are_refused(tmp_path):
    rows = DataLoader(data(), batch_size=8)
    refused(tmp_path, rows=rows, match="= 4, and", code="lightning-argument", physical_batch_size=4)
    trainer_of(tmp_path, physical_batch_size=4).fit(Module(), data())
    about = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert about["settings"]["physical_batch_size"] == 4


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"devices": 2}, "DDPStrategy on 2 devices"),
        ({"precision": "16-mixed"}, "precision = '16-mixed'"),
        ({"precision": "bf16-true"}, "precision = 'bf16-true'"),
        ({"precision": "64-true"}, "precision = '64-true'"),
        ({"strategy": "ddp_spawn"}, "strategy: "),
        ({"max_steps": STEPS + 1}, "the plan allows 7"),
    ],
)
def test_devices_precisions_and_steps_beyond_the_plan_are_refused(tmp_path, settings, match):
    with pytest.raises(ConfigError, match=match) as caught:
        trainer_of(tmp_path, **settings)
    assert caught.value.code == "lightning-argument"


def test_one_of_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        trainer_of(tmp_path, devices=1)


def test_schedules_early_stops_half_precision_and_data_modules_work_as_in_lightning(tmp_path):
    rates = []

    class Scheduled(Module):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def training_step(self, batch):  # batch_idx may be left out
            logits = self.net(batch[0])
            rates.append((self.optimizers().param_groups[0]["lr"], logits.dtype))
            return {"loss": F.cross_entropy(logits, batch[1], reduction="none")}

    class Rows(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(data(), batch_size=60)

    trainer = trainer_of(tmp_path, precision="bf16-mixed", max_steps=3)
    trainer.fit(Scheduled(), datamodule=Rows())
    assert sorted({rate for rate, _ in rates}) == [0.025, 0.05, 0.1]
    assert {kind for rate, kind in rates if rate < 0.1} == {torch.bfloat16}
    assert rates[0][1] == torch.float32, "the guard before the first step compares in single precision"
    ledger = read_run_ledger(tmp_path / "run")
    assert ledger.num_steps == 3 and ledger.planned_steps == STEPS


def test_a_frozen_part_may_not_thaw_in_the_middle(tmp_path):
    class Thaws(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net[0].requires_grad_(trainer.current_epoch > 0)

    with pytest.raises(ReticentError) as caught:
        trainer_of(tmp_path, callbacks=[Thaws()]).fit(Module(), data())
    assert caught.value.code in ("parameters-changed", "optimizer-parameters")


def test_the_module_is_left_as_it_was(tmp_path):
    module = Module()
    before = set(vars(module)) | {"_trainer", "_hparams"}  # Lightning's own
    trainer_of(tmp_path, max_steps=1).fit(module, data())
    assert set(vars(module)) <= before and module.automatic_optimization
    assert all(p.grad is None for p in module.parameters())
