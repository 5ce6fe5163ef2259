"""The `peft` library's methods on tiny models: exact, or refused by name and exact in the loop."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import reticent as rt
from reticent.errors import ReticentError
from tests.clip.test_subsets import recorded, saved_bytes
from tests.support import hf, oracle
from tests.support.case import KeepFloat64, Problem, _shake, cast, next_token_losses
from tests.support.judge import assert_close, median_norm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

pytestmark = [  # what peft itself does
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]

TARGETS = {
    "gpt2-tied": ["c_attn", "c_proj"],
    "bert-classifier": ["query", "value"],
    "llama": ["q_proj", "v_proj"],
    "t5": ["q", "v"],
    "vit": ["q_proj", "v_proj"],
}
PROMPTS = ("PrefixTuningConfig", "PromptTuningConfig", "PromptEncoderConfig", "AdaptionPromptConfig")

Config = tuple[str, dict[str, Any]]  # the name of peft's class, and its settings
EVERYWHERE: dict[str, Config] = {
    "lora": ("LoraConfig", {"r": 2, "lora_alpha": 4}),
    "ia3": ("IA3Config", {"feedforward_modules": []}),
    "vera": ("VeraConfig", {"r": 2}),
    "adalora": ("AdaLoraConfig", {"init_r": 3, "target_r": 2, "total_step": 100}),
}
EXACT: dict[str, Config] = {
    "rs-lora": ("LoraConfig", {"r": 2, "use_rslora": True}),
    "dora": ("LoraConfig", {"r": 2, "use_dora": True}),
    "lora-bias": ("LoraConfig", {"r": 2, "bias": "lora_only"}),
    "lora-and-head": ("LoraConfig", {"r": 2, "modules_to_save": ["lm_head"]}),
    "lora-and-tokens": ("LoraConfig", {"r": 2, "trainable_token_indices": [3, 4, 5]}),
    "lora-on-embeddings": ("LoraConfig", {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}),
    "tokens": ("TrainableTokensConfig", {"token_indices": list(range(3, 40)), "target_modules": None}),
    "norms": ("LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}),
    "lokr": ("LoKrConfig", {"r": 2}),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 4}),
    "boft": ("BOFTConfig", {"boft_block_size": 4}),
    "hra": ("HRAConfig", {"r": 2}),
    "vb-lora": ("VBLoRAConfig", {"num_vectors": 6, "vector_length": 4, "topk": 2}),
    "miss": ("MissConfig", {"r": 2}),
    "road": ("RoadConfig", {"group_size": 4}),
    "gralora": ("GraloraConfig", {"r": 4, "gralora_k": 2}),
    "delora": ("DeloraConfig", {"r": 2}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
    "p-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 8}),
    "adaption-prompt": ("AdaptionPromptConfig", {"adapter_len": 3, "adapter_layers": 1}),
}
REFUSED: dict[str, tuple[str, Config, str]] = {
    "loha": ("llama", ("LoHaConfig", {"r": 2}), r"\[hidden-use\]"),
    "randlora": ("llama", ("RandLoraConfig", {"r": 2}), r"\[hidden-use\]"),
    "c3a": ("llama", ("C3AConfig", {"block_size": 4}), r"\[hidden-use\]"),
    "shira": ("llama", ("ShiraConfig", {"r": 2}), r"\[gradient-mixes-examples\]"),
    "dora-on-conv1d": (
        "gpt2-tied",
        ("LoraConfig", {"r": 2, "use_dora": True}),
        r"\[gradient-mixes-examples\]",
    ),
}


def adapted(name: str, config: Config, dtype: torch.dtype = torch.float64) -> Problem:
    """A tiny model under one of peft's methods, no parameter left at its first value."""
    kind, settings = config
    is_prompt = kind in PROMPTS
    settings = (
        {"task_type": "CAUSAL_LM"} | settings if is_prompt else {"target_modules": TARGETS[name]} | settings
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft on its own settings
        torch.manual_seed(0)
        made = hf.named(name).make()
        model = peft.get_peft_model(made.model, getattr(peft, kind)(**settings))
        _shake(model)
    model.to(dtype).train()

    def of_prompt(batch: dict[str, Tensor]) -> Tensor:
        logits = model(**batch).logits  # of the virtual tokens too
        return next_token_losses(logits[:, -batch["input_ids"].shape[1] :], batch["input_ids"])

    def losses(batch: Any) -> Tensor:
        run = of_prompt if is_prompt else made.losses
        if dtype != torch.float64:
            return run(batch)
        with KeepFloat64():
            return run(batch)

    return Problem(model=model, losses=losses, batch=cast(made.batch, dtype))


def check_exact(problem: Problem, clipped: Callable[..., Any]) -> None:
    max_norm = median_norm(problem)
    assert max_norm > 0
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, max_norm)
    got = clipped(problem.model, problem.losses, problem.batch, max_norm=max_norm)
    assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-10)


@pytest.mark.parametrize("method", EVERYWHERE)
@pytest.mark.parametrize("name", TARGETS)
def test_the_common_methods_are_exact_on_every_model(name: str, method: str) -> None:
    check_exact(adapted(name, EVERYWHERE[method]), rt.clipped_sum)


@pytest.mark.parametrize("method", EXACT)
def test_the_other_methods_are_exact(method: str) -> None:
    check_exact(adapted("llama", EXACT[method]), rt.clipped_sum)


@pytest.mark.parametrize("method", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name_and_exact_in_the_loop(method: str) -> None:
    name, config, code = REFUSED[method]
    problem = adapted(name, config)
    with pytest.raises(ReticentError, match=code) as caught:
        rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=1.0)
    trained = [n for n, p in problem.model.named_parameters() if p.requires_grad]
    assert any(n in str(caught.value) for n in trained), "the error names no parameter"
    check_exact(problem, lambda *args, **options: rt.clipped_sum(*args, **options, method="loop"))


@pytest.mark.parametrize("name", TARGETS)
def test_under_lora_frozen_layers_record_nothing_and_hold_what_plain_autograd_holds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = adapted(name, ("LoraConfig", {"r": 2}), torch.float32)
    plain, engine = saved_bytes(problem)
    assert 0 < engine <= 1.02 * plain
    found = recorded(problem, monkeypatch)
    assert all(len(roots) == 1 and ".lora_" in next(iter(roots)) for roots in found)
    trained = [n for n, p in problem.model.named_parameters() if p.requires_grad]
    assert len(found) == len(trained) and frozenset().union(*found) == set(trained)
