"""Data on disk, by index: the rows drawn are those of the same data in memory; streams are refused."""

import io
import tarfile

import numpy as np
import pytest
import torch

from reticent.data import TarShards
from reticent.errors import DataError
from reticent.train._rows import fetch, num_rows
from tests.train.joint import cross_entropy, make_data, make_plan, make_private

X, Y = make_data().tensors


def mapped(folder):
    np.save(folder / "x.npy", X.numpy())
    np.save(folder / "y.npy", Y.numpy())
    return np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy", mmap_mode="r")


def shards(folder):
    with tarfile.open(folder / "a.tar", "w") as archive:
        for i in range(len(X)):
            for ending, content in (("x", X[i].numpy().tobytes()), ("y", str(int(Y[i])).encode())):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return TarShards(
        folder,
        decode=lambda files: (
            torch.frombuffer(bytearray(files["x"]), dtype=torch.float32),
            int(files["y"]),
        ),
    )


def arrow(folder):
    """A table in Arrow's format on disk, which `datasets` maps into memory; rows as (x, y)."""
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()}).save_to_disk(str(folder / "arrow"))
    table = datasets.load_from_disk(str(folder / "arrow"), keep_in_memory=False).with_format("torch")
    assert table.cache_files, "the table is not on disk"
    return table


FORMS = {"memory-mapped arrays": mapped, "tar shards": shards, "arrow": arrow}


@pytest.mark.parametrize("form", FORMS)
def test_the_rows_drawn_from_disk_are_those_in_memory(form, tmp_path):
    data = FORMS[form](tmp_path)
    assert num_rows(data) == len(X)
    drawn = np.array([3, 17, 60])
    rows = fetch(data, drawn)
    x, y = rows.values() if isinstance(rows, dict) else rows
    assert torch.equal(x, X[drawn]) and torch.equal(y, Y[drawn])

    def loss(model, rows):
        return cross_entropy(model, tuple(rows.values()) if isinstance(rows, dict) else rows)

    private = make_private(tmp_path / "run")
    for batch in make_plan().batches(data):
        with private.step(batch) as step:
            for chunk in step.chunks():
                step.backward(loss, chunk)
    assert private.ledger.num_steps == 5


def test_a_transform_of_a_table_sees_one_row_at_a_time(tmp_path):
    seen = []

    def centred(rows):  # would mix the rows of a batch
        seen.append(len(rows["x"]))
        x = torch.tensor(rows["x"])
        return {"x": list(x - x.mean(0)), "y": list(torch.tensor(rows["y"]))}

    table = arrow(tmp_path).with_format(None).with_transform(centred)
    assert not fetch(table, np.array([1, 2, 3]))["x"].any()
    assert set(seen) == {1}


def test_a_stream_of_a_table_is_refused(tmp_path):
    stream = arrow(tmp_path).to_iterable_dataset()
    with pytest.raises(DataError, match=r"stream|length") as caught:
        next(iter(make_plan().batches(stream)))
    assert caught.value.code == "data-rows"
