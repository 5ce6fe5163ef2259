"""Tiny random-initialised Hugging Face models as cases, every parameter trainable.

Losses are computed here, one for each example, from the logits: `model(...).loss` divides by what the
whole batch holds. Dropout is 0, so that training mode is deterministic.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
import transformers as hf
from torch import Tensor, nn

from reticent.errors import ReticentError

from .case import Case, Problem, next_token_losses, token_ids

B, T, V = 4, 9, 60
# A bias on attention keys shifts all scores of a query alike, so softmax gives it no gradient.
KEY_BIAS: Final = ("key.bias", "k_proj.bias", "k_lin.bias")
LENGTHS: Final = (9, 4, 7, 1)

DECODER: Final = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
ENCODER: Final = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VISION: Final = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 5,
}


def right_padding() -> Tensor:
    """(B, T) attention mask of ones, then zeros."""
    return (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()


def own_token_mean(each: Tensor, kept: Tensor) -> Tensor:
    """Mean over each example's own kept tokens; an example with none has loss zero."""
    return (each * kept).sum(1) / kept.sum(1).clamp_min(1)


def causal(
    name: str,
    config: Callable[[], Any],
    *,
    padded: bool = False,
    idle: tuple[str, ...] = (),
    may_refuse: bool = False,
    match: str | None = None,
) -> Case:
    """A causal language model with its own default position ids."""

    def make() -> Problem:
        model = hf.AutoModelForCausalLM.from_config(config(), attn_implementation="eager").train()

        def losses(batch: dict[str, Tensor]) -> Tensor:
            logits = model(**batch).logits
            if "attention_mask" not in batch:
                return next_token_losses(logits, batch["input_ids"])
            each = nn.functional.cross_entropy(logits[:, :-1].mT, batch["input_ids"][:, 1:], reduction="none")
            return own_token_mean(each, batch["attention_mask"][:, 1:])

        batch = {"input_ids": token_ids(V, B, T, low=3)}
        if padded:
            batch["attention_mask"] = right_padding()
        return Problem(model=model, losses=losses, batch=batch)

    refuse = ReticentError if may_refuse else None
    return Case(
        name=name, make=make, upcasts=True, idle=idle, may_refuse=may_refuse, refuse=refuse, match=match
    )


def masked(name: str, config: Callable[[], Any], *, padded: bool = True, idle: tuple[str, ...] = ()) -> Case:
    """A masked language model: some tokens replaced, each example averages over its own."""

    def make() -> Problem:
        model = hf.AutoModelForMaskedLM.from_config(config(), attn_implementation="eager").train()

        def losses(batch: dict[str, Tensor]) -> Tensor:
            inputs = {key: value for key, value in batch.items() if key not in ("labels", "hidden")}
            each = nn.functional.cross_entropy(model(**inputs).logits.mT, batch["labels"], reduction="none")
            return own_token_mean(each, batch["hidden"])

        labels = token_ids(V, B, T, low=3)
        hidden = (torch.rand(B, T) < 0.4).long()
        hidden[:, 0] = 1
        batch = {"input_ids": labels.masked_fill(hidden == 1, 2), "labels": labels, "hidden": hidden}
        if padded:
            batch["attention_mask"] = right_padding()
            batch["hidden"] = hidden * batch["attention_mask"]
        return Problem(model=model, losses=losses, batch=batch)

    return Case(name=name, make=make, upcasts=True, idle=idle)


def classifier(
    name: str, config: Callable[[], Any], *, padded: bool = True, idle: tuple[str, ...] = ()
) -> Case:
    """A sequence classifier."""

    def make() -> Problem:
        model = hf.AutoModelForSequenceClassification.from_config(
            config(), attn_implementation="eager"
        ).train()

        def losses(batch: dict[str, Tensor]) -> Tensor:
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            return nn.functional.cross_entropy(model(**inputs).logits, batch["labels"], reduction="none")

        batch = {"input_ids": token_ids(V, B, T, low=3), "labels": token_ids(2, B)}
        if padded:
            batch["attention_mask"] = right_padding()
            batch["input_ids"] = batch["input_ids"] * batch["attention_mask"]
        return Problem(model=model, losses=losses, batch=batch)

    return Case(name=name, make=make, upcasts=True, idle=idle)


def translator(name: str, config: Callable[[], Any], *, idle: tuple[str, ...] = ()) -> Case:
    """An encoder-decoder language model."""

    def make() -> Problem:
        model = hf.AutoModelForSeq2SeqLM.from_config(config(), attn_implementation="eager").train()

        def losses(batch: dict[str, Tensor]) -> Tensor:
            target = batch["decoder_input_ids"]
            return next_token_losses(model(**batch, use_cache=False).logits, target)

        batch = {
            "input_ids": token_ids(V, B, T, low=3),
            "attention_mask": right_padding(),
            "decoder_input_ids": token_ids(V, B, 6, low=3),
        }
        return Problem(model=model, losses=losses, batch=batch)

    return Case(name=name, make=make, upcasts=True, idle=idle)


def images(
    name: str,
    config: Callable[[], Any],
    *,
    size: int = 12,
    idle: tuple[str, ...] = (),
    evaluating: bool = False,
) -> Case:
    """An image classifier."""

    def make() -> Problem:
        model = hf.AutoModelForImageClassification.from_config(config()).train(not evaluating)

        def losses(batch: dict[str, Tensor]) -> Tensor:
            logits = model(pixel_values=batch["pixel_values"]).logits
            return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

        return Problem(
            model=model,
            losses=losses,
            batch={"pixel_values": torch.randn(B, 3, size, size), "labels": token_ids(5, B)},
        )

    return Case(name=name, make=make, upcasts=True, idle=idle)


def _gpt2(tied: bool) -> Any:
    return hf.GPT2Config(
        vocab_size=V,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=tied,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def _t5(gated: bool) -> Any:
    return hf.T5Config(
        vocab_size=V,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=8,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
    )


def _mixtral() -> Any:
    config = hf.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    config._experts_implementation = "eager"  # the grouped kernels have no float64
    return config


CAUSAL: Final = (
    causal("gpt2-tied", lambda: _gpt2(True)),
    causal("gpt2-untied", lambda: _gpt2(False)),
    causal("gpt2-padded", lambda: _gpt2(True), padded=True),
    causal("llama", lambda: hf.LlamaConfig(**DECODER, tie_word_embeddings=False)),
    causal("llama-tied-padded", lambda: hf.LlamaConfig(**DECODER, tie_word_embeddings=True), padded=True),
    causal("mistral", lambda: hf.MistralConfig(**DECODER, sliding_window=4)),
    causal("qwen2", lambda: hf.Qwen2Config(**DECODER)),
    causal("qwen3", lambda: hf.Qwen3Config(**DECODER, head_dim=4)),
    causal("gemma", lambda: hf.GemmaConfig(**DECODER, head_dim=4)),
    causal("gemma2", lambda: hf.Gemma2Config(**DECODER, head_dim=4, sliding_window=4)),
    causal("gemma3", lambda: hf.Gemma3TextConfig(**DECODER, head_dim=4, sliding_window=4)),
    causal("phi", lambda: hf.PhiConfig(**{**DECODER, "num_key_value_heads": 4})),
    causal(
        "gpt-neox",
        lambda: hf.GPTNeoXConfig(**{k: v for k, v in DECODER.items() if k != "num_key_value_heads"}),
    ),
    causal(
        "opt",
        lambda: hf.OPTConfig(
            vocab_size=V,
            hidden_size=16,
            num_hidden_layers=2,
            ffn_dim=24,
            num_attention_heads=4,
            max_position_embeddings=16,
            word_embed_proj_dim=16,
            dropout=0.0,
            use_cache=False,
        ),
        padded=True,
        idle=KEY_BIAS,
    ),
    causal(
        "bloom",
        lambda: hf.BloomConfig(
            vocab_size=V,
            hidden_size=16,
            n_layer=2,
            n_head=4,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            use_cache=False,
        ),
    ),
    causal(
        "openai-gpt",
        lambda: hf.OpenAIGPTConfig(
            vocab_size=V,
            n_positions=16,
            n_embd=16,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ),
        padded=True,
    ),
    causal(
        "mamba",
        lambda: hf.MambaConfig(
            vocab_size=V,
            hidden_size=8,
            state_size=4,
            num_hidden_layers=1,
            time_step_rank=2,
            use_cache=False,
            use_mambapy=False,
        ),
    ),
    causal("mixtral", _mixtral, may_refuse=True, match="experts|gate|mlp|block_sparse_moe"),
)

ENCODERS: Final = (
    masked("bert", lambda: hf.BertConfig(**ENCODER), idle=KEY_BIAS),
    classifier("bert-classifier", lambda: hf.BertConfig(**ENCODER), idle=KEY_BIAS),
    masked("roberta", lambda: hf.RobertaConfig(**{**ENCODER, "pad_token_id": 1}), idle=KEY_BIAS),
    classifier(
        "roberta-classifier", lambda: hf.RobertaConfig(**{**ENCODER, "pad_token_id": 0}), idle=KEY_BIAS
    ),
    masked(
        "distilbert",
        lambda: hf.DistilBertConfig(
            vocab_size=V,
            dim=16,
            hidden_dim=24,
            n_layers=2,
            n_heads=4,
            max_position_embeddings=16,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
        ),
        idle=KEY_BIAS,
    ),
    masked("albert", lambda: hf.AlbertConfig(**ENCODER, embedding_size=8), idle=KEY_BIAS),
    classifier(
        "deberta-v2",
        lambda: hf.DebertaV2Config(
            **ENCODER,
            relative_attention=True,
            max_relative_positions=8,
            position_buckets=4,
            pos_att_type=["p2c", "c2p"],
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pooler_hidden_size=16,
            pooler_dropout=0.0,
        ),
    ),
    masked(
        "modernbert",
        lambda: hf.ModernBertConfig(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
            local_attention=4,
            global_attn_every_n_layers=2,
            reference_compile=False,
        ),
    ),
    masked("electra", lambda: hf.ElectraConfig(**ENCODER, embedding_size=8), idle=KEY_BIAS),
    masked("mpnet", lambda: hf.MPNetConfig(**ENCODER), idle=("attn.k.bias",)),
)

TRANSLATORS: Final = (
    translator("t5", lambda: _t5(gated=False)),
    translator("t5-gated-untied", lambda: _t5(gated=True)),
    translator(
        "bart",
        lambda: hf.BartConfig(
            vocab_size=V,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=16,
            dropout=0.0,
        ),
        idle=KEY_BIAS,
    ),
)

IMAGES: Final = (
    images("vit", lambda: hf.ViTConfig(**VISION), idle=KEY_BIAS),
    images("dinov2", lambda: hf.Dinov2Config(**VISION, mlp_ratio=2), size=16, idle=(*KEY_BIAS, "mask_token")),
    images(
        "beit",
        lambda: hf.BeitConfig(
            **VISION, drop_path_rate=0.0, use_relative_position_bias=True, layer_scale_init_value=0.1
        ),
    ),
    images(
        "swin",
        lambda: hf.SwinConfig(
            image_size=16,
            patch_size=2,
            embed_dim=8,
            depths=[2, 1],
            num_heads=[2, 4],
            window_size=4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            drop_path_rate=0.0,
            num_labels=5,
        ),
        size=16,
        idle=KEY_BIAS,
    ),
    images(
        "convnext",
        lambda: hf.ConvNextConfig(
            hidden_sizes=[8, 16],
            depths=[1, 2],
            num_stages=2,
            patch_size=2,
            drop_path_rate=0.0,
            layer_scale_init_value=0.1,
            num_labels=5,
        ),
        size=16,
    ),
    images(
        "convnextv2",
        lambda: hf.ConvNextV2Config(
            hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, patch_size=2, drop_path_rate=0.0, num_labels=5
        ),
        size=16,
    ),
    images(
        "resnet-eval",
        lambda: hf.ResNetConfig(embedding_size=6, hidden_sizes=[8, 12], depths=[1, 1], num_labels=5),
        size=16,
        evaluating=True,
    ),
)

_ALL: Final = (*CAUSAL, *ENCODERS, *TRANSLATORS, *IMAGES)
EXACT: Final[tuple[Case, ...]] = tuple(case for case in _ALL if not case.may_refuse)
EITHER: Final[tuple[Case, ...]] = tuple(case for case in _ALL if case.may_refuse)


def named(name: str) -> Case:
    """One of the cases that must be exact."""
    return next(case for case in EXACT if case.name == name)
