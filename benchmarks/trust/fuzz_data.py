"""Readers of data, for `benchmarks.trust.fuzz`: tables, images and shards of a person's own."""

import io
import json
import tarfile
import warnings

import numpy as np
from PIL import Image
from scipy.io import savemat

from reticent.data import (
    TarShards,
    read_cifar100,
    read_image_folder,
    read_image_table,
    read_svhn,
    read_table,
)
from reticent.data._tar_shards import INDEX_NAME

ROWS = [{"text": f"row {k}, said to be \u00e9", "label": k % 2, "score": k / 3} for k in range(6)]


def targets(folder):
    """Name -> (a valid input, what reads a file of it)."""
    import pyarrow as pa
    import pyarrow.parquet

    folder.mkdir()
    table = pa.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    csv = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)
    saved = folder / "saved"
    saved.mkdir()
    with (
        pa.OSFile(str(saved / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "a", "_split": None}
    (saved / "state.json").write_text(json.dumps(state))
    (saved / "dataset_info.json").write_text(json.dumps({"features": {}}))

    images = folder / "images"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (images / split / name).mkdir(parents=True)
            for kind in ("png", "jpg", "bmp", "gif"):
                Image.fromarray(_pixels((9, 9, 3))).save(images / split / name / f"1.{kind}")
    labelled = folder / "labelled"
    for split in ("train", "test"):
        (labelled / split).mkdir(parents=True)
        Image.fromarray(_pixels((9, 9, 3))).save(labelled / split / "1.png")
        (labelled / split / "labels.csv").write_text("file,cat,dog\n1.png,1,0\n")

    shards = folder / "shards"
    shards.mkdir()
    with tarfile.open(shards / "a.tar", "w") as archive:
        for number in range(4):
            for ending in ("img", "cls"):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = 20
                archive.addfile(info, io.BytesIO(bytes(20)))
    TarShards(shards, decode=len)
    cifar, svhn = folder / "cifar", folder / "svhn"
    for place in (cifar, svhn):
        place.mkdir()
    for name in ("train", "test"):
        (cifar / f"{name}.bin").write_bytes(bytes(2 * 3074))
        savemat(svhn / f"{name}_32x32.mat", {"X": _pixels((32, 32, 3, 2)), "y": np.array([[1], [10]])})

    def of(name):
        path = folder / name
        return lambda: read_table(path)

    def shards_of():
        found = TarShards(shards, decode=dict)
        return [found[k] for k in range(min(len(found), 5))]

    def shards_anew():
        (shards / INDEX_NAME).unlink(missing_ok=True)
        return shards_of()

    def pictures():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_image_folder(images, side=8, mixed="convert")

    return {
        "JSON lines": in_place(folder / "a.jsonl", of("a.jsonl"), "\n".join(map(json.dumps, ROWS)).encode()),
        "CSV": in_place(folder / "a.csv", of("a.csv"), csv.encode()),
        "TSV": in_place(folder / "a.tsv", of("a.tsv"), csv.replace(",", "\t").encode()),
        "Parquet": in_place(folder / "a.parquet", of("a.parquet")),
        "Arrow": in_place(saved / "data-00000-of-00001.arrow", of("saved")),
        "state of a saved data set": in_place(saved / "state.json", of("saved")),
        "labels of images": in_place(
            labelled / "train" / "labels.csv", lambda: read_image_table(labelled, side=8, mixed="convert")
        ),
        **{
            f"pictures, {kind}": in_place(images / "train" / "a" / f"1.{kind}", pictures)
            for kind in ("png", "jpg", "bmp", "gif")
        },
        "tar shards": in_place(shards / "a.tar", shards_anew),
        "index of tar shards": in_place(shards / INDEX_NAME, shards_of),
        "CIFAR-100": in_place(cifar / "train.bin", lambda: read_cifar100(cifar)),
        "SVHN": in_place(svhn / "train_32x32.mat", lambda: read_svhn(svhn)),
    }


def in_place(target, read, valid=None):
    """A valid input (by default what the file holds), and what writes another there and reads it."""
    if valid is not None:
        target.write_bytes(valid)
    valid = target.read_bytes()

    def parse(data):
        target.write_bytes(data)
        try:
            read()
        finally:
            target.write_bytes(valid)

    return valid, parse


def _pixels(shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
