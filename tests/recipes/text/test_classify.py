"""The recipe `text-classify` on a tiny model: exact per-example gradients, and its settings."""

import pytest
import torch

import reticent as rt
from reticent.errors import ConfigError
from reticent.recipes import request
from reticent.recipes.text.classify import TEXT_CLASSIFY, TextClassifyConfig, _adapted, label_losses
from tests.recipes.text.models import byte_tokenizer
from tests.support.case import Problem
from tests.support.judge import assert_close, median_norm
from tests.support.oracle import loop_clipped_sum

hf = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.mark.parametrize("kind", ["Bert", "MPNet"])
@pytest.mark.parametrize("adaptation", ["full", "lora", "bias"])
def test_padded_rows_are_clipped_exactly(kind: str, adaptation: str) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    settings = getattr(hf, f"{kind}Config")(
        **sizes, num_attention_heads=4, max_position_embeddings=16, num_labels=3
    )
    model = hf.AutoModelForSequenceClassification.from_config(settings).eval()
    model = _adapted(model, TextClassifyConfig(adaptation=adaptation)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    ids = torch.randint(3, 60, (4, 9))
    mask = (torch.arange(9) < torch.tensor([9, 4, 7, 2])[:, None]).long()
    batch = (torch.where(mask == 1, ids, settings.pad_token_id), mask, torch.tensor([0, 1, 2, 1]))
    problem = Problem(model=model, losses=lambda rows: label_losses(model, rows), batch=batch)
    norm = median_norm(problem)
    total, norms = loop_clipped_sum(model, problem.losses, batch, norm)
    got = rt.clipped_sum(model, problem.losses, batch, max_norm=norm)
    assert_close(got, total, norms, max_norm=norm, tolerance=1e-9)


def test_a_setting_of_lora_is_refused_without_it() -> None:
    with pytest.raises(ConfigError, match="lora_rank would be ignored"):
        request("text-classify", ["lora_rank=4"])


def test_the_plan_is_told_without_data() -> None:
    told = TEXT_CLASSIFY.describe(request("text-classify", ["epsilon=8"]))
    assert told["num_steps"] == 60 and 7.5 < told["epsilon"] <= 8


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_length": 30}, "reads 22 tokens"),
        ({"pad": None}, "has no pad token"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_trained(tmp_path, change, told) -> None:
    torch.manual_seed(0)
    settings = hf.MPNetConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=24,
    )  # fmt: skip
    hf.MPNetForSequenceClassification(settings).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    if "pad" in change:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    config = TextClassifyConfig(model=str(tmp_path), max_length=change.get("max_length", 16))
    with pytest.raises(ConfigError, match=told) as caught:
        TEXT_CLASSIFY.build(config)
    assert caught.value.code == "text-model"
