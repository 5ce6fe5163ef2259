"""Models that cannot be fine-tuned privately: refused by name in both recipes, before anything is spent."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from reticent.errors import ConfigError
from reticent.recipes import request, run
from reticent.recipes.text import _fit
from tests.recipes.text.encoders import SIZES, encoder_settings, save_masked, word_tokenizer
from tests.recipes.text.models import byte_tokenizer, gpt2, llama

TINY = {"vocab_size": 300, "d_model": 16, "num_layers": 1}


def saved(model, folder: Path, *, pads: bool = True) -> Path:
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    if not pads:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder


def bart(folder: Path) -> Path:
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads"), 1)
    more = {"decoder_attention_heads": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, **sizes}
    config = hf.BartConfig(vocab_size=300, d_model=16, max_position_embeddings=32, **more)
    return saved(hf.BartForConditionalGeneration(config), folder)


def t5(folder: Path) -> Path:
    config = hf.T5Config(**TINY, d_kv=8, d_ff=8, num_heads=2, decoder_start_token_id=0)
    return saved(hf.T5ForConditionalGeneration(config), folder)


def mixtral(folder: Path) -> Path:
    sizes = {**SIZES, "num_key_value_heads": 2, "num_local_experts": 2, "vocab_size": 60}
    hf.MixtralForCausalLM(hf.MixtralConfig(**sizes)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def normed(folder: Path) -> Path:
    """Saved as a plain Llama; what is loaded has batch normalisation, as remote code may bring it."""
    return saved(llama(), folder)


def lacking(folder: Path) -> Path:
    """A whole layer's weights are not there: transformers would fill it with random ones, and only warn."""
    saved(llama(), folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: t for name, t in weights.items() if ".layers.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def garbled(folder: Path) -> Path:
    (saved(llama(), folder) / "model.safetensors").write_bytes(b"no weights")
    return folder


def of_no_kind(folder: Path) -> Path:
    (saved(llama(), folder) / "config.json").write_text("{}")
    return folder


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def short(folder: Path) -> Path:
    return saved(llama(context=8), folder)


def foreign(folder: Path) -> Path:
    """Its tokenizer knows more words than the model embeds."""
    config = hf.LlamaConfig(**{**llama().config.to_dict(), "vocab_size": 100})
    return saved(hf.LlamaForCausalLM(config), folder)


CASES: list[tuple[Callable[[Path], Path], str]] = [
    (bart, r"encoder-decoder \(bart\), which is not offered"),
    (t5, r"encoder-decoder \(t5\), which is not offered"),
    (mixtral, "sends words to experts at"),
    (normed, "batch normalisation at 'norm'"),
    (lacking, r"lack \d+ parameters, which would be random: model\.layers\.1\."),
    (garbled, "weights of .* cannot be read"),
    (of_no_kind, "(tokenizer|configuration) of .* cannot be read"),
    (empty, "neither a folder with a config.json"),
    (short, "max_length = 16, and .* reads 8 tokens"),
    (foreign, "do not belong together"),
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"text": f"mail {k}", "label": ("ham", "spam")[k % 2]} for k in range(20)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def refused(recipe: str, model: Path, rows: Path, out: Path, *more: str) -> str:
    own = ["labels=ham,spam"] if recipe == "text-classify" else []
    few = ["num_steps=2", "expected_batch_size=4", "max_length=16"]
    with pytest.raises(ConfigError) as caught:
        run(request(recipe, [f"model={model}", f"data={rows}", *few, *own, *more]), out=out)
    assert caught.value.code == "text-model"
    assert not out.exists(), "a run was begun"
    return str(caught.value)


@pytest.mark.parametrize("recipe", ["text-classify", "text-generate"])
@pytest.mark.parametrize(("make", "told"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_a_model_is_refused_by_name_before_anything_is_spent(
    tmp_path, rows, monkeypatch, recipe, make, told
) -> None:
    if make is normed:
        monkeypatch.setattr(_fit, "check_parts", with_a_norm(_fit.check_parts))
    message = refused(recipe, make(tmp_path / "model"), rows, tmp_path / "run")
    assert re.search(told, message), message


@pytest.mark.parametrize("kind", ["RobertaPreLayerNorm", "Data2VecText", "Roberta"])
def test_a_kind_whose_positions_begin_later_is_refused_before_anything_is_spent(tmp_path, rows, kind) -> None:
    """The long row is one of many, and would be drawn by chance, when others have been spent on."""
    sizes = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    more = {"num_attention_heads": 2, "max_position_embeddings": 16, "pad_token_id": 0}
    model = getattr(hf, f"{kind}ForMaskedLM")(getattr(hf, f"{kind}Config")(**sizes, **more))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    said = refused("text-classify", folder, rows, tmp_path / "run")
    fits = (
        "reads 14 tokens"
        if kind == "Roberta"
        else "cannot read a row of max_length = 16 tokens, as one made-up"
    )
    assert fits in said and "lower max_length" in said.lower()
    few = [f"model={folder}", f"data={rows}", "labels=ham,spam", "num_steps=1", "expected_batch_size=4"]
    assert run(request("text-classify", [*few, "max_length=14"]), out=tmp_path / "fits")["private"]


def test_a_decoder_that_fails_at_a_full_row_is_refused_before_anything_is_spent(
    tmp_path, rows, monkeypatch
) -> None:
    """As one whose configuration does not say how many positions it has."""
    monkeypatch.setattr(_fit, "_check_length", lambda *_: None)
    folder = saved(gpt2(context=12), tmp_path / "model")
    said = refused("text-generate", folder, rows, tmp_path / "run", "adaptation=full")
    assert "cannot read a row of max_length = 16" in said


def test_token_types_that_the_model_has_not_are_refused_before_anything_is_spent(tmp_path, rows) -> None:
    folder = save_masked(tmp_path / "model", type_vocab_size=1)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    word_tokenizer(model_input_names=names).save_pretrained(folder)
    more = ["pair_column=text", "text_column=text"]
    assert "one has token types" in refused("text-classify", folder, rows, tmp_path / "run", *more)


def with_a_norm(check):
    def checked(model, name):
        model.norm = torch.nn.BatchNorm1d(4)
        check(model, name)

    return checked


def test_a_classifiers_tokenizer_needs_a_pad_token_and_a_decoders_does_not(tmp_path, rows) -> None:
    folder = saved(gpt2(), tmp_path / "model", pads=False)
    assert "has no pad token" in refused("text-classify", folder, rows, tmp_path / "a")
    few = ["num_steps=1", "expected_batch_size=4", "max_length=16", "adaptation=bias", "max_test=1"]
    result = run(request("text-generate", [f"model={folder}", f"data={rows}", *few]), out=tmp_path / "b")
    assert result["private"] and result["num_steps"] == 1


@pytest.mark.parametrize("more", [(), ("init=random", "adaptation=full")])
def test_an_encoder_does_not_generate_with_weights_of_its_own_or_random_ones(tmp_path, rows, more) -> None:
    folder = save_masked(tmp_path / "model")
    assert r"it is an encoder (bert)" in refused("text-generate", folder, rows, tmp_path / "run", *more)
    hf.BertLMHeadModel(encoder_settings(is_decoder=True)).save_pretrained(tmp_path / "back")
    assert not _fit._is_encoder(hf.AutoConfig.from_pretrained(tmp_path / "back"))


@pytest.mark.parametrize("recipe", ["text-classify", "text-generate"])
def test_prefix_tuning_is_refused_by_name(recipe) -> None:
    data = [] if recipe == "text-classify" else ["data=brown"]
    with pytest.raises(ConfigError, match="a prefix cannot be merged"):
        request(recipe, ["adaptation=prefix-tuning", *data])


@pytest.mark.parametrize("size", [0, "some"])
@pytest.mark.parametrize("recipe", ["text-classify", "text-generate"])
def test_a_physical_batch_is_of_one_row_or_more(recipe, size) -> None:
    data = [] if recipe == "text-classify" else ["data=brown"]
    with pytest.raises(ConfigError, match="must be an integer >= 1, or 'auto'"):
        request(recipe, [f"physical_batch_size={size}", *data])


@pytest.mark.parametrize("recipe", ["text-classify", "text-generate"])
def test_without_transformers_a_run_is_refused_with_the_command_that_installs_it(
    tmp_path, monkeypatch, recipe
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"mail {k}", "label": k % 2}) + "\n" for k in range(60)))
    labels = ["labels=0,1"] if recipe == "text-classify" else []
    asked = request(recipe, [f"data={rows}", *labels])
    monkeypatch.setattr("reticent.recipes.text._packages.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'reticent\[text\]'") as e:
        run(asked, out=tmp_path / "run")
    assert e.value.code == "missing-library"
    assert not (tmp_path / "run").exists()
