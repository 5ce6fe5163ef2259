"""Rows of random tokens: to measure memory with, and to audit on. No text is read.

Room: recipes.text. Imports torch only; takes a tokenizer of transformers.

Shape letters: B row, T position.
"""

from typing import Any, Final

import torch
from jaxtyping import Int
from torch import Tensor

_LEAST: Final = 2  # tokens of a row: what follows the first one can be predicted


def random_tokens(
    tokenizer: Any, num_rows: int, *, max_length: int, pad: int, whole: bool = False, seed: int = 0
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Token ids, uniform over the vocabulary but its special ones, and attention mask, padded on the right.

    Args:
        tokenizer: knows the vocabulary.
        num_rows: B.
        max_length: T.
        pad: id of what fills up.
        whole: every row has T tokens; else from 2 to T, by chance.
        seed: of all of it; public.
    """
    generator = torch.Generator().manual_seed(seed)
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    picked_BT = torch.randint(len(ordinary), (num_rows, max_length), generator=generator)
    length_B = torch.randint(_LEAST, max_length + 1, (num_rows,), generator=generator)
    mask_BT = (torch.arange(max_length) < (max_length if whole else length_B[:, None])).expand_as(picked_BT)
    return torch.where(mask_BT, ordinary[picked_BT], pad), mask_BT.long()
