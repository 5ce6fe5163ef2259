"""Tiny random decoders and a tokenizer that needs no file: bytes are its tokens."""

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)


def byte_tokenizer(**settings):
    """Every byte is a token; 0 pads, 1 ends."""
    return ByT5Tokenizer(extra_ids=0, **settings)


def character_tokenizer():
    """Every ASCII character is the token of its number plus 3; 0 pads, 1 ends; nothing is added to a text."""
    words = {"[PAD]": 0, "</s>": 1, "[UNK]": 2} | {chr(c): c + 3 for c in range(32, 127)}
    made = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", eos_token="</s>")


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
