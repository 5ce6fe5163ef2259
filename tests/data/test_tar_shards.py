"""Samples in tar archives by index: those that WebDataset reads in turn; damaged archives are refused."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest

from reticent.data import TarShards
from reticent.data._tar_shards import INDEX_NAME
from reticent.errors import DataError


def write(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def samples(start, count):
    return [
        (f"part/{i:05d}.{ending}", content)
        for i in range(start, start + count)
        for ending, content in (("seg.npy", bytes([i]) * (i + 1)), ("cls", str(i % 3).encode()))
    ]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "a.tar", samples(0, 7))
    write(tmp_path / "b.tar", samples(7, 4))
    return tmp_path


def decode(files):
    return files["seg.npy"], int(files["cls"])


def test_every_sample_is_there_once_in_the_order_of_the_archives(folder):
    shards = TarShards(folder, decode=decode)
    assert len(shards) == 11
    assert [shards[i] for i in range(11)] == [(bytes([i]) * (i + 1), i % 3) for i in range(11)]
    assert shards[-1] == shards[10]
    with pytest.raises(IndexError):
        shards[11]


def test_the_index_is_made_once_and_anew_when_an_archive_changes(folder, monkeypatch):
    TarShards(folder, decode=decode)
    before = (folder / INDEX_NAME).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("reticent.data._tar_shards._scan", None)  # a second scan would fail
        assert len(TarShards(folder, decode=decode)) == 11
    write(folder / "b.tar", samples(7, 5000 // 256))
    assert len(TarShards(folder, decode=decode)) == 7 + 5000 // 256
    assert (folder / INDEX_NAME).read_bytes() != before


def test_an_archive_of_the_same_size_is_another(folder):
    """tar pads archives to whole blocks: the old index would take bytes of two samples for one."""
    write(folder / "b.tar", [("p.x", b"A" * 600), ("q.x", b"B" * 10)])
    TarShards(folder / "b.tar", decode=dict)
    size = (folder / "b.tar").stat().st_size
    write(folder / "b.tar", [("p.x", b"A" * 10), ("q.x", b"B" * 600)])
    assert (folder / "b.tar").stat().st_size == size
    os.utime(folder / "b.tar", ns=(1, 1))  # two writes may fall into one tick of the file system's clock
    shards = TarShards(folder / "b.tar", decode=dict)
    assert [shards[i] for i in range(2)] == [{"x": b"A" * 10}, {"x": b"B" * 600}]


@pytest.mark.parametrize("shape", [(10**15,), (10**30,), (-5,)])
def test_an_index_that_is_a_bomb_is_made_again(folder, shape):
    TarShards(folder, decode=decode)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(folder / INDEX_NAME, "w", zipfile.ZIP_DEFLATED) as saved:
        saved.writestr("starts.npy", header.getvalue())
        saved.writestr("where.npy", bytes(10**7))
    assert len(TarShards(folder, decode=decode)) == 11


@pytest.mark.parametrize("change", ["offset", "shard", "suffix", "starts", "cut", "text"])
def test_an_index_that_would_read_elsewhere_is_made_again(folder, change):
    TarShards(folder, decode=decode)
    path = folder / INDEX_NAME
    arrays = dict(np.load(path))
    match change:
        case "offset":
            arrays["where"][3, 1] = 10**9
        case "shard":
            arrays["where"][3, 0] = -1
        case "suffix":
            arrays["suffix"][0] = 7
        case "starts":
            arrays["starts"] = arrays["starts"][::-1].copy()
    with path.open("wb") as file:
        np.savez(file, **arrays)
    if change in ("cut", "text"):
        path.write_bytes(path.read_bytes()[:100] if change == "cut" else b"no index")
    assert TarShards(folder, decode=decode)[3] == (b"\x03" * 4, 0)


@pytest.mark.parametrize(
    ("members", "mode", "message"),
    [
        ([("a.x", b"1")], "w:gz", "no plain tar archive"),
        ([("noending", b"1")], "w", "without a name and an ending"),
        ([("a.x", b"1"), ("a.x", b"2")], "w", "two members that end in"),
        ([], "w", "holds no sample"),
        ([("a." + "x" * 101, b"1")], "w", "ending of more than 100"),
    ],
)
def test_what_is_no_shard_is_refused(tmp_path, members, mode, message):
    write(tmp_path / "a.tar", members, mode)
    with pytest.raises(DataError, match=message) as caught:
        TarShards(tmp_path, decode=decode)
    assert caught.value.code == "data-format"


def test_links_cut_archives_and_missing_ones_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="no plain file"):
        TarShards(tmp_path, decode=decode)
    write(tmp_path / "b.tar", [("a.bin", bytes(5000))])
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut off|no plain tar"):
        TarShards([tmp_path / "b.tar"], decode=decode)
    with pytest.raises(DataError, match="There is no archive") as caught:
        TarShards([tmp_path / "none.tar"], decode=decode)
    assert caught.value.code == "data-missing"


def test_a_size_that_leads_back_is_refused(tmp_path):
    """Python's own reader goes round in circles on such sizes (CVE-2025-8194)."""
    link = tarfile.TarInfo("a.txt")
    link.pax_headers = {"size": "-1024"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(link)
    with pytest.raises(DataError, match=r"overlaps another|no plain tar"):
        TarShards(tmp_path, decode=decode)


def test_an_index_can_be_kept_elsewhere_and_where_it_cannot_is_said(folder, tmp_path):
    TarShards(folder, decode=decode, index=tmp_path / "other.npz")
    assert not (folder / INDEX_NAME).exists()
    with pytest.raises(DataError, match="cannot be written") as caught:
        TarShards(folder, decode=decode, index=tmp_path / "nowhere" / "other.npz")
    assert caught.value.code == "data-cache"
