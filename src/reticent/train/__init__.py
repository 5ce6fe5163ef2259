"""The training joint: where sampling, clipping, noise and the ledger meet.

Room: train (floor 3). May import torch, safetensors, rich, and the floors below.

`reticent.train` is both this room and, from the front door, the function `train`: so the room can be
called.
"""

import sys
from types import ModuleType

from ._adapt import ClipNorms
from ._checkpoint import Checkpoint, has_checkpoint, load_checkpoint, load_tensors, save_tensors
from ._ema import ema_start
from ._evaluate import Evaluation, eval_mode, evaluate, in_chunks
from ._files import append_line, finite, write_json
from ._folder import (
    RunDescription,
    left_by_steps,
    new_folder,
    read_run,
    removed_if_empty,
    removed_unless_spent,
    write_run,
)
from ._ledger import check_ledger, create_ledger, ledger_epsilon, new_run_id
from ._loop import Companion, FitResult, Stepper, Tracking, TrainSettings, fit
from ._memory import PeakMemory
from ._open_step import OpenStep
from ._physical import available_memory, largest_physical_batch_size
from ._progress import SilentWatcher, Watcher, progress_bar, silent_or_bar
from ._rows import Transform, augment, chunks_of, num_rows
from ._seeds import mix_seed
from ._step import PrivateStep
from ._track import check_tracking, tracked
from ._train import TrainResult, resume, train
from ._users import UserRows, over_users, over_views

__all__ = [
    "Checkpoint",
    "ClipNorms",
    "Companion",
    "Evaluation",
    "FitResult",
    "OpenStep",
    "PeakMemory",
    "PrivateStep",
    "RunDescription",
    "SilentWatcher",
    "Stepper",
    "Tracking",
    "TrainResult",
    "TrainSettings",
    "Transform",
    "UserRows",
    "Watcher",
    "append_line",
    "augment",
    "available_memory",
    "check_ledger",
    "check_tracking",
    "chunks_of",
    "create_ledger",
    "ema_start",
    "eval_mode",
    "evaluate",
    "finite",
    "fit",
    "has_checkpoint",
    "in_chunks",
    "largest_physical_batch_size",
    "ledger_epsilon",
    "left_by_steps",
    "load_checkpoint",
    "load_tensors",
    "mix_seed",
    "new_folder",
    "new_run_id",
    "num_rows",
    "over_users",
    "over_views",
    "progress_bar",
    "read_run",
    "removed_if_empty",
    "removed_unless_spent",
    "resume",
    "save_tensors",
    "silent_or_bar",
    "tracked",
    "train",
    "write_json",
    "write_run",
]


class _Room(ModuleType):
    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _Room
