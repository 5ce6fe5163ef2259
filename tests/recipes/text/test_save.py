"""Saving: whole models and adapters load with transformers and peft alone, and say the same."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from reticent.recipes.text._adapt import adapt
from reticent.recipes.text._fit import read_lacking, read_tokenizer
from reticent.recipes.text._save import merged, save_model
from tests.recipes.text.encoders import save_masked
from tests.recipes.text.models import byte_tokenizer, gpt2, llama

# peft asks transformers for a property that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def adapted(build):
    """A model with adapters that do something: their second half is random instead of zero."""
    base = build().double()
    targets = ["c_attn"] if build is gpt2 else ["q_proj", "v_proj"]
    model = get_peft_model(base, LoraConfig(r=2, target_modules=targets, fan_in_fan_out=build is gpt2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("build", [gpt2, llama])
def test_merged_equals_unmerged(build):
    model = adapted(build)
    wanted = logits(model)
    torch.testing.assert_close(logits(merged(model)), wanted, rtol=1e-10, atol=1e-10)
    with model.disable_adapter():
        assert (logits(model) - wanted).abs().max() > 1e-3  # the adapters do something
    assert torch.equal(logits(model), wanted)  # and are still there


@pytest.mark.parametrize("build", [gpt2, llama])
def test_the_adapter_folder_gives_the_model_back(tmp_path, build):
    model = adapted(build)
    saved = save_model(model, byte_tokenizer(), tmp_path, base="tiny")
    assert saved == {"model": "model", "adapter": "adapter"}
    again = PeftModel.from_pretrained(build().double(), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again), logits(model))
    stated = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] == "tiny"


@pytest.mark.parametrize("adaptation", ["lora", "ia3"])
@pytest.mark.parametrize("kind", ["Bert", "DebertaV2", "DistilBert", "Roberta"])
def test_adapters_with_a_new_head_give_the_model_back_on_weights_that_lack_it(tmp_path, kind, adaptation):
    """Whatever random numbers stand where the base has no weights: in head, pooler and what lies between."""
    if (kind, adaptation) == ("DistilBert", "ia3"):
        pytest.skip("peft has no IA3 for it")
    base = save_masked(tmp_path / "base", kind)
    model, lacking = read_lacking(str(base), objective="head", max_length=8, num_labels=2)
    model = adapt(model, adaptation=adaptation, new_head=True, random=lacking)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    save_model(model, read_tokenizer(str(base)), tmp_path)
    wanted = logits(model)
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(logits(whole), wanted)
    for seed in (7, 8):
        torch.manual_seed(seed)
        again = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2).eval()
        assert not torch.allclose(logits(again), wanted)
        torch.testing.assert_close(
            logits(PeftModel.from_pretrained(again, tmp_path / "adapter").eval()), wanted
        )


def test_saving_again_replaces_what_was_there(tmp_path):
    save_model(gpt2(0), byte_tokenizer(), tmp_path)
    (tmp_path / "model" / "stale").write_text("")
    save_model(gpt2(1), byte_tokenizer(), tmp_path)
    assert not (tmp_path / "model" / "stale").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), logits(gpt2(1))
    )


def test_a_save_that_is_killed_leaves_the_model_before(tmp_path, monkeypatch):
    save_model(gpt2(0), byte_tokenizer(), tmp_path)
    broken = byte_tokenizer()
    monkeypatch.setattr(broken, "save_pretrained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_model(gpt2(1), broken, tmp_path)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), logits(gpt2(0))
    )


ALONE = """
import sys
sys.modules["reticent"] = None  # importing it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
try:
    import reticent
except ImportError:
    ids = tokenizer("a cat", return_tensors="pt").input_ids
    print(repr(float(model(input_ids=ids).logits.sum())))
"""


@pytest.mark.slow
def test_it_loads_with_transformers_alone(tmp_path):
    model = llama()
    save_model(model, byte_tokenizer(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "model")],
        capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ids = byte_tokenizer()("a cat", return_tensors="pt").input_ids
    with torch.no_grad():
        assert float(done.stdout) == pytest.approx(float(model(input_ids=ids).logits.sum()), rel=1e-5)
