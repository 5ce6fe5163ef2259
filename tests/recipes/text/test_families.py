"""Every family of language models as it is really trained: in full and by LoRA, padding on either side,
masked labels, tied embeddings, checkpointed activations, the loss of `PrivateTrainer`; against one example
at a time in float64.
"""

import warnings

import peft
import pytest
import torch

import reticent as rt
from reticent.hf import per_example_loss
from tests.support import hf, oracle
from tests.support.case import KeepFloat64, Problem, _shake, token_ids
from tests.support.judge import assert_close, median_norm

pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
FAST = ("gpt2-tied", "roberta", "llama-tied-padded")
FAMILIES = (
    *FAST, "gpt2-untied", "bert", "distilbert", "llama", "qwen3", "gemma2", "gemma3", "t5", "t5-gated-untied",
    "bart", "albert", "electra", "modernbert", "mistral", "qwen2", "gemma", "phi", "gpt-neox", "opt", "bloom",
    "mpnet", "openai-gpt",
)  # fmt: skip
ENCODERS = ("bert", "roberta", "distilbert", "albert", "electra", "modernbert", "mpnet")
NO_CHECKPOINTS = ("albert", "mpnet", "openai-gpt")  # transformers offers none for these
KINDS = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FAMILIES]
B, T, LENGTHS = 4, 9, (9, 5, 7, 3)


def padded_rows(side: str) -> dict[str, torch.Tensor]:
    """Rows of different lengths, learned from each one's third token on; row 3 learns nothing."""
    place = torch.arange(T) if side == "right" else torch.arange(T).flip(0)
    mask = (place < torch.tensor(LENGTHS)[:, None]).long()
    ids = token_ids(hf.V, B, T, low=3) * mask + (1 - mask)
    order = mask.cumsum(1) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(order < 3, -100).masked_fill(torch.arange(B)[:, None] == 3, -100),
    }


def trained(name: str, side: str, *, adapters: bool) -> Problem:
    """A tiny model of a family with the trainer's loss, no parameter left at its first value."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft on its own settings
        torch.manual_seed(0)
        model = hf.named(name).make().model
        if adapters:
            model = peft.get_peft_model(
                model, peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type=_task(name))
            )
        _shake(model)
        rows = padded_rows(side)
    model.double().train()
    loss = per_example_loss(model)

    def losses(rows: dict[str, torch.Tensor]) -> torch.Tensor:
        with KeepFloat64():
            return loss(model, rows)

    return Problem(model=model, losses=losses, batch=rows)


def _task(name: str) -> str | None:
    if name in ENCODERS:
        return None
    return "SEQ_2_SEQ_LM" if name.startswith(("t5", "bart")) else "CAUSAL_LM"


def check(problem: Problem, tolerance: float) -> None:
    _, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, 1e30)
    max_norm = float(norms[:3].median())
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, max_norm)
    assert max_norm > 0 and norms[3] == 0, "a row without labels counts as zero"
    got = rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=max_norm)
    assert_close(got, total, norms, max_norm=max_norm, tolerance=tolerance)


SIDES = pytest.mark.parametrize("side", ["left", "right"])


@SIDES
@pytest.mark.parametrize("name", KINDS)
def test_full_training_is_exact_on_rows_padded_on_either_side(name: str, side: str) -> None:
    check(trained(name, side, adapters=False), 1e-9)


@SIDES
@pytest.mark.parametrize("name", KINDS)
def test_lora_is_exact_on_rows_padded_on_either_side(name: str, side: str) -> None:
    check(trained(name, side, adapters=True), 1e-9)


@pytest.mark.parametrize(
    "adapters", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["full", "lora"]
)
@pytest.mark.parametrize("name", [kind for kind in KINDS if kind.values[0] not in NO_CHECKPOINTS])
def test_with_checkpointed_activations_it_is_exact(name: str, adapters: bool) -> None:
    """Against the loop without checkpoints, float64 throughout: what a checkpoint runs again in the
    backward pass is outside the loss, so the whole call is kept from casting.
    """
    problem = trained(name, "left", adapters=adapters)
    max_norm = median_norm(problem)
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, max_norm)
    problem.model.gradient_checkpointing_enable({"use_reentrant": False})
    with KeepFloat64():
        got = rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=max_norm)
    assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-9)
