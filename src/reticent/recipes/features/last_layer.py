"""The recipe `last-layer`: a linear classifier on frozen features, by a method in closed form.

Room: recipes. May import torch, scipy, rich, and the floors below.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from scipy.optimize import minimize
from scipy.stats import rankdata
from torch import Tensor, nn

from reticent.account import Segments, verify_traces
from reticent.account.ledger import Ledger, read_run_ledger, verify_contains
from reticent.errors import CheckpointError, ConfigError, DataError
from reticent.noise import CipherNoise
from reticent.sample import SampleStream
from reticent.train import (
    Checkpoint,
    Evaluation,
    FitResult,
    RunDescription,
    TrainSettings,
    finite,
    ledger_epsilon,
    left_by_steps,
    load_checkpoint,
    load_tensors,
    mix_seed,
    new_folder,
    new_run_id,
    removed_if_empty,
    removed_unless_spent,
    silent_or_bar,
    write_json,
    write_run,
)

from .._config import restore_config
from .._going_on import as_chosen, read_result, restated
from .._reader import Given, Reader, Watch, weights_sha256, with_weights
from .._recipe import Recipe, Request
from ._config import LastLayerConfig
from ._methods import HEAD_SETTINGS, Method, PublicShape, make_head, make_method, resolved
from ._new_rows import new_features, noted_shape
from ._rows import Preparation, block_rows, raw_blocks
from ._sources import Features, load_features, public_shape
from ._stage_plan import check_stage_ledger
from ._stage_run import run_stages
from ._stages import Head
from ._sums import losses, residuals


class LastLayerRecipe(Recipe):
    """A private linear classifier on frozen features."""

    name = "last-layer"
    summary = "a linear classifier on frozen features: one step, least squares, Newton, or many steps"
    config: type[LastLayerConfig] = LastLayerConfig

    def shape_of(self, config: Any) -> PublicShape:
        """N, D and K; reads no more than they need."""
        return public_shape(config.features)

    def features_of(self, config: Any, *, report: Callable[[str], None], progress: bool) -> Features:
        """The rows."""
        return load_features(config.features, report=report, progress=progress)

    def noted_shape(self, config: Any, about: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        """D and the classes' names, of a run; nothing of its rows is read."""
        return noted_shape(config.features, about["data"])

    def new_rows(self, config: Any, about: Mapping[str, Any], path: Path, watch: Watch) -> Given:
        """Rows to be predicted."""
        return new_features(path, features=config.features, about=about["data"], watch=watch)

    def reader(self, config: Any, about: Mapping[str, Any], folder: Path) -> Reader:
        dim, classes = self.noted_shape(config, about)

        def load(run: Path, weights: str) -> nn.Module:
            noted = (read_result(run, concluded=True) or {}).get("head", {})
            shape = PublicShape(num_examples=about["plan"]["num_examples"], dim=dim, num_classes=len(classes))
            chosen = resolved(_of(config).model_copy(update=noted), shape)
            return with_weights(make_head(chosen, dim=dim, num_classes=len(classes)), run, weights)

        return Reader(
            classes=classes,
            answer="one",
            load=load,
            read=lambda path, watch: self.new_rows(config, about, path, watch),
            outputs=_outputs,
            batch_size=block_rows(dim),
        )

    def describe(self, asked: Request) -> dict[str, Any]:
        config = _of(asked.config)
        method = make_method(config, self.shape_of(config))
        plan = method.plan
        private = config.private
        described = plan.describe()
        return {
            "epsilon": finite(plan.epsilon().epsilon) if private else None,
            "delta": plan.delta,
            "method": method.config.method,
            "noise_multiplier": described.get("noise_multiplier"),
            "num_steps": plan.num_steps,
            "expected_batch_size": plan.stages[-1].sampler.expected_batch_size,
            "neighbouring_relation": plan.relation.value,
            "stages": described["stages"],
        }

    def spends(self, asked: Request) -> Segments:
        config = _of(asked.config)
        plan = make_method(config, self.shape_of(config)).plan
        return [(stage.mechanism, stage.num_steps) for stage in plan.stages]

    def run(
        self, asked: Request, *, out: Path, console: Console | None, data: Features | None = None
    ) -> dict[str, Any]:
        config = _of(asked.config)
        out = new_folder(out)
        with removed_if_empty(out):
            features = data or self.features_of(config, report=_sayer(console), progress=console is not None)
            method = make_method(config, features.shape)
            run_id = new_run_id()
            private = math.isfinite(config.epsilon)
            write_run(
                out,
                run_id=run_id,
                description=RunDescription(
                    recipe=self.name, config=config.public_dict(), data=dict(features.about)
                ),
                plan=method.plan.describe(),
                settings=settings_of(method),
                physical_batch_size=block_rows(features.shape.dim),
                noise_seed=config.noise_seed,
                model=method.head,
                private=config.private,
            )
        with removed_unless_spent(out):
            if not private:
                return self._go(method, features, out, console, ledger=None, checkpoint=None)
            with new_ledger(out, method, run_id) as ledger:
                return self._go(method, features, out, console, ledger=ledger, checkpoint=None)

    def go_on(
        self,
        folder: Path,
        *,
        about: Mapping[str, Any],
        console: Console | None,
        data: Features | None = None,
    ) -> dict[str, Any]:
        config = restore_config(self.config, about["config"])
        shape = self.shape_of(config) if data is None else data.shape
        method = make_method(config, shape)
        _check_unedited(folder, method, about)
        done = _finished(folder, method, run_id=about["run_id"])
        if done is not None:
            return done
        features = data or self.features_of(config, report=_sayer(console), progress=console is not None)
        if dict(features.about["fingerprint"]) != about["data"].get("fingerprint"):
            raise DataError(
                f"The features of '{self.name}' are not those the run in '{folder}' began with. Restore "
                "them; a ledger speaks of one data set.",
                code="store-fingerprint",
            )
        checkpoint = load_checkpoint(folder, say=_sayer(console))
        if not math.isfinite(config.epsilon):
            return self._go(method, features, folder, console, ledger=None, checkpoint=checkpoint)
        with _old_ledger(folder, method, about["run_id"], checkpoint) as ledger:
            return self._go(method, features, folder, console, ledger=ledger, checkpoint=checkpoint)

    def _go(
        self,
        method: Method,
        features: Features,
        folder: Path,
        console: Console | None,
        *,
        ledger: Ledger | None,
        checkpoint: Checkpoint | None,
    ) -> dict[str, Any]:
        config, start = method.config, 0 if ledger is None else ledger.num_steps
        evaluation = Evaluation(
            dataset=(features.test.x, features.test.y),
            scores=_scores,
            batch_size=block_rows(features.shape.dim),
        )
        spent = (lambda: ledger_epsilon(ledger).epsilon) if ledger is not None else None
        title = "without privacy" if ledger is None else "private"
        with silent_or_bar(console, title, method.plan.num_steps, epsilon=spent) as watcher:
            done = run_stages(
                method,
                features.train,
                ledger=ledger,
                noise=noise_of(config, start),
                stream=stream_of(config, start, private=ledger is not None),
                folder=folder,
                settings=settings_of(method),
                watcher=watcher,
                evaluation=evaluation,
                checkpoint=checkpoint,
            )
        result = {
            **_result(done, self.name, method, folder, ledger),
            **_ranking(method, features, folder),
        }
        if config.twin:
            result["twin"] = _twin(method, features, result["seconds"])
        result["weights_sha256"] = weights_sha256(folder, result["weights"])
        result = finite(as_chosen(folder, result))
        write_json(folder / "result.json", result)
        return result


def _of(config: Any) -> LastLayerConfig:
    assert isinstance(config, LastLayerConfig)
    return config


def _sayer(console: Console | None) -> Callable[[str], None]:
    if console is None:
        return lambda text: None
    return lambda text: console.print(text, style="bold yellow", markup=False, highlight=False)


def settings_of(method: Method) -> TrainSettings:
    config = method.config
    steps = method.plan.stages[-1].num_steps
    return TrainSettings(
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        ema=config.ema,
        lr_decay_steps=steps if config.lr_decay == "linear" else 0,
        seed=config.seed,
    )


def noise_of(config: LastLayerConfig, start: int) -> CipherNoise:
    if config.noise_seed is None:
        return CipherNoise.fresh()
    return CipherNoise.reproducible(config.noise_seed, start=start)


def stream_of(config: LastLayerConfig, start: int, *, private: bool) -> SampleStream:
    if private and config.noise_seed is None:
        return SampleStream.fresh()
    seed = mix_seed(config.seed, "sampling without privacy") if not private else config.noise_seed
    assert seed is not None
    return SampleStream.reproducible(seed, start=start)


def new_ledger(folder: Path, method: Method, run_id: str) -> Ledger:
    plan, config = method.plan, method.config
    return Ledger.create(
        folder / "ledger.jsonl",
        run_id=run_id,
        relation=plan.relation,
        delta=plan.delta,
        num_steps=plan.num_steps,
        reproducible=config.noise_seed is not None,
        public={
            "num_examples": plan.num_examples,
            "releases": [[stage.name, stage.num_steps] for stage in plan.stages],
        },
    )


def _old_ledger(folder: Path, method: Method, run_id: str, checkpoint: Checkpoint | None) -> Ledger:
    """The run's ledger, open; a new one if the run was stopped before it had one."""
    path = folder / "ledger.jsonl"
    if not left_by_steps(folder) and (not path.exists() or b"\n" not in path.read_bytes()):
        return new_ledger(folder, method, run_id)
    ledger = Ledger.open(path)
    try:
        reproducible = method.config.noise_seed is not None
        check_stage_ledger(ledger, method.plan, reproducible=reproducible, run_id=run_id)
        verify_traces(ledger, folder)
        _check_checkpoint(ledger, checkpoint, folder)
        ledger.append_resume(checkpoint_step=0 if checkpoint is None else checkpoint.step)
    except BaseException:
        ledger.close()
        raise
    return ledger


def _check_checkpoint(ledger: Ledger, checkpoint: Checkpoint | None, folder: Path) -> None:
    if checkpoint is None:
        if ledger.num_steps:
            raise CheckpointError(
                f"The ledger of '{folder}' holds {ledger.num_steps} releases and there is no checkpoint: "
                "their results are gone and they stay spent. Restore the checkpoints, or start a new run "
                "with what is left of the budget.",
                code="checkpoint-missing",
            )
        return
    if checkpoint.ledger_head is None:
        raise CheckpointError(
            f"The checkpoint of '{folder}' belongs to a run without a ledger.", code="checkpoint-mismatch"
        )
    verify_contains(ledger, head=checkpoint.ledger_head, num_steps=checkpoint.step)


def _check_unedited(folder: Path, method: Method, about: Mapping[str, Any]) -> None:
    """Refuse a description whose settings do not give its plan, or that turns a private run into another.

    Raises:
        ConfigError[run-edited]: as said.
    """
    wrong = [] if about["plan"] == json.loads(json.dumps(method.plan.describe())) else ["plan"]
    if about["private"] != method.config.private:
        wrong.append("private")
    if not math.isfinite(method.config.epsilon) and (folder / "ledger.jsonl").exists():
        wrong.append("epsilon")
    if wrong:
        raise ConfigError(
            f"'{folder / 'run.json'}' contradicts itself or the ledger in: {', '.join(wrong)}. A run goes on "
            "as it began: restore the file; for other settings start a new run.",
            code="run-edited",
        )


def _finished(folder: Path, method: Method, *, run_id: str) -> dict[str, Any] | None:
    """The result of a run that is over, its privacy read from the ledger again; None if it is not over."""
    result = read_result(folder, concluded=True)
    if result is None:
        return None
    if not math.isfinite(method.config.epsilon):
        return {**result, "run": str(folder), "private": False, "epsilon": None}
    view = read_run_ledger(folder)
    reproducible = method.config.noise_seed is not None
    check_stage_ledger(view, method.plan, reproducible=reproducible, run_id=run_id)
    if view.num_steps < view.planned_steps:
        return None
    return restated(folder, result, view)


def _result(
    done: FitResult, recipe: str, method: Method, folder: Path, ledger: Ledger | None
) -> dict[str, Any]:
    weights = "ema" if method.config.ema else "last"
    shown = {
        "recipe": recipe,
        "method": method.config.method,
        **{f"test_{name}": finite(value) for name, value in done.scores[weights].items()},
        "weights": weights,
        "scores": finite(done.scores),
        "head": {name: getattr(method.config, name) for name in HEAD_SETTINGS},
        "seconds": round(done.seconds, 3),
        "run": str(folder),
    }
    if ledger is None:
        return {
            "private": False,
            "epsilon": None,
            "delta": method.plan.delta,
            "num_steps": done.updates,
            **shown,
        }
    report = ledger_epsilon(ledger, final=True)
    return {
        "private": not ledger.reproducible,
        "epsilon": finite(report.epsilon),
        "delta": report.delta,
        "neighbouring_relation": str(report.neighbouring_relation),
        "accountant": report.accountant,
        "num_steps": ledger.num_steps,
        "num_lost": ledger.num_lost,
        **shown,
    }


def _scores(model: nn.Module, rows: Any) -> dict[str, Tensor]:
    """Each row's accuracy (0 or 1) and cross-entropy, shape (B,)."""
    z, y = _outputs(model, rows), rows[1]
    return {
        "accuracy": (z.argmax(1) == y).double(),
        "loss": losses(z, y, "softmax"),
    }


def _outputs(model: nn.Module, rows: Any) -> Tensor:
    """Outputs (B, K) of rows as they are kept."""
    assert isinstance(model, Head)
    return model(model.preparation.apply(rows[0].float(), rows[1]).x)


def _ranking(method: Method, features: Features, folder: Path) -> dict[str, float]:
    """The area under the ROC curve on the test rows, where there are two classes."""
    if features.shape.num_classes == 2 and method.config.ema:
        method.head.load_state_dict(load_tensors(folder / "ema.safetensors")[0])
    return _auc(method.head, features)


def _auc(head: Head, features: Features) -> dict[str, float]:
    """Under its name; nothing where there are not two classes, or the test rows are of one alone."""
    if features.shape.num_classes != 2 or len(np.unique(features.test.y)) < 2:
        return {}
    rows = raw_blocks(features.test, block_rows=block_rows(features.shape.dim))
    with torch.no_grad():
        outputs = [head(head.preparation.apply(x, y).x) for x, y in rows]
    z = torch.cat(outputs)
    ranks, positive = rankdata((z[:, 1] - z[:, 0]).numpy()), np.asarray(features.test.y) == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    above = ranks[positive].sum() - num_positive * (num_positive + 1) / 2
    return {"test_auc": float(above / (num_positive * num_negative))}


def _twin(method: Method, features: Features, seconds: float) -> dict[str, Any]:
    """Logistic regression without privacy on the same rows, to convergence: what privacy costs."""
    began = time.perf_counter()
    head = fit_plain(features, scaling=method.config.scaling, feature_norm=method.config.feature_norm)
    scores = _mean_scores(head, features)
    twin_seconds = time.perf_counter() - began
    return {
        "private": False,
        **{f"test_{name}": value for name, value in scores.items()},
        **_auc(head, features),
        "seconds": round(twin_seconds, 3),
        "time_ratio": round(seconds / max(twin_seconds, 1e-3), 3),
    }


def fit_plain(
    features: Features, *, scaling: Any = "normalise", feature_norm: float = 1.0, l2: float = 1e-6
) -> Head:
    """Multinomial logistic regression by L-BFGS over all rows: NOT private.

    Args:
        features: rows.
        scaling: as in the settings.
        feature_norm: likewise.
        l2: weight of half the squared weights, beside the mean loss.
    """
    shape = features.shape
    head = Head(
        dim=shape.dim,
        num_classes=shape.num_classes,
        preparation=Preparation(scaling=scaling, max_norm=feature_norm, intercept=feature_norm),
    )

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = torch.from_numpy(flat.reshape(head.weight.shape))
        total, gradient = 0.0, torch.zeros_like(weight)
        for x, y in raw_blocks(features.train, block_rows=block_rows(shape.dim)):
            block = head.preparation.apply(x, y)
            z = block.x @ weight.float().mT
            total += float(losses(z, y, "softmax").sum())
            gradient += residuals(z, y, "softmax").mT @ block.x
        mean = total / shape.num_examples + 0.5 * l2 * float(weight.square().sum())
        return mean, (gradient / shape.num_examples + l2 * weight).numpy().ravel()

    start = np.zeros(head.weight.numel())
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(found.x.reshape(head.weight.shape)))
    return head


def _mean_scores(head: Head, features: Features) -> dict[str, float]:
    rows = raw_blocks(features.test, block_rows=block_rows(features.shape.dim))
    with torch.no_grad():
        parts = [_scores(head, pair) for pair in rows]
    return {name: float(torch.cat([part[name] for part in parts]).double().mean()) for name in parts[0]}


LAST_LAYER: Final = LastLayerRecipe()
