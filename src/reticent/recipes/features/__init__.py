"""Frozen features: extraction into a store on disk, and the private last layer on top of them.

Room: recipes. Heavy libraries (transformers, timm, torchvision) are imported only where a backbone of
theirs is asked for.
"""

from ._command import run_extraction
from ._config import LastLayerConfig
from ._extract import Inputs, extract
from ._rows_run import fit_rows
from ._stages import Head
from ._store import FeatureStore, Fingerprint, Shape, Split, StoreWriter, open_store

__all__ = [
    "FeatureStore",
    "Fingerprint",
    "Head",
    "Inputs",
    "LastLayerConfig",
    "Shape",
    "Split",
    "StoreWriter",
    "extract",
    "fit_rows",
    "open_store",
    "run_extraction",
]
