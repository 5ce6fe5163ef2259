"""Tiny random decoders and a tokenizer that needs no file: bytes are its tokens."""

import torch
from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


def byte_tokenizer(**settings):
    """Every byte is a token; 0 pads, 1 ends."""
    return ByT5Tokenizer(extra_ids=0, **settings)


def gpt2(seed=0, *, context=64):
    """A GPT-2 of two small layers over bytes."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=259, n_positions=context, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def llama(seed=0, *, context=64):
    """A Llama of two small layers over bytes."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259, max_position_embeddings=context, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()
