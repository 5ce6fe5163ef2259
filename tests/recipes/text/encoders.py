"""Tiny random encoders, and a tokenizer of whole words made in memory."""

from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "it was great terrible . , ? a b c d yes no maybe film good bad".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def word_tokenizer(**settings) -> Any:
    """Every known word is a token, and so are pieces of "great": `terri` + `##fic` are two."""
    vocab = {word: k for k, word in enumerate([*SPECIAL, *WORDS, "terri", "##fic"])}
    core = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, **{**named, "mask_token": "[MASK]", **settings}, model_max_length=512
    )


def encoder_settings(kind="Bert", *, vocab_size=60, positions=40, **more):
    """Configuration of a tiny encoder."""
    sizes = dict(SIZES)
    if kind == "DistilBert":
        sizes = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4}
    if kind == "Albert":
        sizes["embedding_size"] = 8
    return getattr(hf, f"{kind}Config")(
        vocab_size=vocab_size, max_position_embeddings=positions, pad_token_id=0, **sizes, **more
    )


def save_masked(folder, kind="Bert", **more):
    """A folder with a tiny encoder that fills masks, and its tokenizer."""
    torch.manual_seed(0)
    getattr(hf, f"{kind}ForMaskedLM")(encoder_settings(kind, **more)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder
