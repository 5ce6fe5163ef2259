"""Private training on a user's own images, in class folders.

Room: recipes.
"""

from typing import Any, Final

from .._config import with_defaults
from ._folder import FinetuneConfig, FolderConfig, FolderRecipe

_OWN: Final[dict[str, Any]] = dict(dataset="folder", size=0, shape=(3, 0, 0), num_classes=0)
_DEFAULTS: Final[dict[str, Any]] = dict(
    num_steps=200, expected_batch_size=256, max_norm=1.0, momentum=0.0, twin_lr=0.1, model="small-cnn"
)

VISION_SCRATCH: Final = FolderRecipe(
    name="vision-scratch",
    summary="your own images (data=FOLDER with a folder for each class), from random weights",
    config=with_defaults(FolderConfig, "VisionScratchConfig", **_DEFAULTS, lr=2.0),
    **_OWN,
)
VISION_FINETUNE: Final = FolderRecipe(
    name="vision-finetune",
    summary="your own images (data=FOLDER), from public weights (start_from=FILE) of the same network",
    config=with_defaults(FinetuneConfig, "VisionFinetuneConfig", **_DEFAULTS, lr=1.0, train_only="head"),
    **_OWN,
)
