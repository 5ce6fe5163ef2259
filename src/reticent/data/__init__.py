"""Named data sets, fetched once into a cache, checked by SHA-256 and never unpickled.

Room: data (floor 1). Imports numpy, platformdirs, rich and `reticent.errors`; no torch.

    data = load("fashion-mnist")
    data.train.x, data.train.y      # uint8 (60000, 28, 28), int64 (60000,)

`load` falls back from source to source, never from data set to data set: swapping one for
another is a recipe's business, done loudly there.
"""

from reticent.data._adult import CATEGORIES as ADULT_CATEGORIES
from reticent.data._adult import encode_adult
from reticent.data._cache import arrays_sha256, cache_root
from reticent.data._files import Table, has_split, read_table
from reticent.data._image_files import ImageFiles, read_image_files
from reticent.data._image_folder import ImageFolder, has_splits, read_image_folder
from reticent.data._image_places import read_places
from reticent.data._image_table import read_image_table
from reticent.data._layouts import read_cifar100, read_svhn
from reticent.data._load import class_names, fetch, fetch_all, load, names
from reticent.data._pretrained import cached_folder, fetch_pretrained, pretrained_names, pretrained_note
from reticent.data._records import ArrayPair, Dataset, RemoteFile, Source
from reticent.data._tar_shards import TarShards
from reticent.data._users import check_user_names

__all__ = [
    "ADULT_CATEGORIES",
    "ArrayPair",
    "Dataset",
    "ImageFiles",
    "ImageFolder",
    "RemoteFile",
    "Source",
    "Table",
    "TarShards",
    "arrays_sha256",
    "cache_root",
    "cached_folder",
    "check_user_names",
    "class_names",
    "encode_adult",
    "fetch",
    "fetch_all",
    "fetch_pretrained",
    "has_split",
    "has_splits",
    "load",
    "names",
    "pretrained_names",
    "pretrained_note",
    "read_cifar100",
    "read_image_files",
    "read_image_folder",
    "read_image_table",
    "read_places",
    "read_svhn",
    "read_table",
]
