"""Transformers for text, from their configurations (random weights, nothing is fetched)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.work import Work


def next_token(model: nn.Module, ids: Tensor) -> Work:
    """Each example's mean cross entropy of its next tokens; never over the batch."""

    def losses(ids: Tensor) -> Tensor:
        logits = model(ids).logits[:, :-1]
        return F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").mean(1)

    return Work(model, losses, ids)


def gpt2(
    num_layers: int,
    num_examples: int = 8,
    length: int = 100,
    width: int = 768,
    num_heads: int = 12,
    vocabulary: int = 50257,
) -> Work:
    """GPT-2 of any size, tied head, next-token loss, dropout off."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=num_layers,
        n_embd=width,
        n_head=num_heads,
        vocab_size=vocabulary,
        n_positions=max(1024, length),
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return next_token(GPT2LMHeadModel(config), torch.randint(0, vocabulary, (num_examples, length)))


def bert(
    train: Literal["all", "bias", "classifier"],
    num_layers: int = 12,
    width: int = 768,
    num_heads: int = 12,
    length: int = 128,
    num_examples: int = 8,
) -> Work:
    """BERT with two classes; `train` says which parameters are."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        num_hidden_layers=num_layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=num_heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    model = BertForSequenceClassification(config)
    for name, p in model.named_parameters():
        is_bias = train == "bias" and name.endswith("bias")
        p.requires_grad_(train == "all" or is_bias or name.startswith("classifier"))
    batch = (torch.randint(0, 30522, (num_examples, length)), torch.randint(0, 2, (num_examples,)))

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, labels = batch
        return F.cross_entropy(model(ids).logits, labels, reduction="none")

    return Work(model, losses, batch)


def llama(num_examples: int = 8, length: int = 128, lora_rank: int = 0) -> Work:
    """SmolLM2-135M's shapes, tied head, next-token loss; with `lora_rank`, adapters on attention only."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model: Any = LlamaForCausalLM(config)
    if lora_rank:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(
                r=lora_rank,
                lora_dropout=0.0,
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
                init_lora_weights=False,  # else B is zero, and every gradient of A
            ),
        )
    return next_token(model, torch.randint(0, 49152, (num_examples, length)))
