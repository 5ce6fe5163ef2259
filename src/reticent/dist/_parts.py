"""Tensors in files of which each rank writes a part, and any number of ranks reads what it needs.

Room: dist. May import torch, safetensors and `reticent.errors`.

The format is that of torch's distributed checkpoints in safetensors files [1]: nothing is pickled.

Sources:
    [1] PyTorch documentation, torch.distributed.checkpoint.HuggingFaceStorageWriter.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from reticent.errors import CheckpointError


def write_parts(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Write sharded tensors, and others from rank 0, into files of an empty folder; collective."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _quiet():
        save(dict(tensors), storage_writer=writer, process_group=group)


def read_parts(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or sharded, from files written by any number of ranks; not collective."""
    with _quiet():
        load(dict(into), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def described_parts(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name -> whole shape and dtype, of what `write_parts` wrote."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: (about.size, about.properties.dtype)
        for name, about in found.items()
        if isinstance(about, TensorStorageMetadata)
    }


def require_all_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a folder in which this process does not see all that `write_parts` wrote of the tensors.

    Raises:
        CheckpointError[checkpoint-parts]: the ranks' folders are not the same.
    """
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    sizes = {
        name: sum(chunk.sizes.numel() for chunk in about.chunks)
        for name, about in found.items()
        if isinstance(about, TensorStorageMetadata)
    }
    missing = sorted(name for name, t in tensors.items() if sizes.get(name, 0) != t.numel())
    if missing:
        raise CheckpointError(
            f"Rank 0 does not see what other ranks wrote of {missing[:3]} in '{folder}'. Choose a folder "
            "for the run that all ranks share.",
            code="checkpoint-parts",
        )


def sharded_like(t: Tensor, like: Any) -> Tensor:
    """A tensor that all ranks have whole, spread as `like` is; itself where that is not spread."""
    if not isinstance(like, DTensor) or isinstance(t, DTensor) or t.shape != like.shape:
        return t
    return distribute_tensor(
        t.detach().to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings on the way it calls itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
