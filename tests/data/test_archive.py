"""Archives: each kind unpacks to the same files, and a hostile or broken one to none."""

import stat
import subprocess
import tarfile
import zipfile

import pytest

from reticent.data import _archive
from reticent.data._archive import unpack
from reticent.errors import DataError

FILES = {"a/one.txt": b"1", "a/b/two.txt": b"22", "c/three.txt": b"333"}


@pytest.fixture(params=["x.zip", "x.whl", "x.tgz", "x.deb"])
def packed(request, tmp_path, made):
    make = {"zip": made.make_zip, "whl": made.make_zip, "tgz": made.make_tgz, "deb": made.make_deb}
    path = tmp_path / request.param
    path.write_bytes(make[request.param[2:]](FILES))
    return path


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_kind_unpacks_to_the_same_files(packed, out):
    unpack(packed, out)
    assert tree(out) == FILES


def test_unpacked_files_are_read_only(packed, out):
    unpack(packed, out)
    assert all(not p.stat().st_mode & stat.S_IWUSR for p in out.rglob("*") if p.is_file())


def test_only_wanted_members_are_unpacked(packed, out):
    unpack(packed, out, members=("a/b/", "c/three.txt"))
    assert set(tree(out)) == {"a/b/two.txt", "c/three.txt"}


def test_a_wanted_member_that_is_missing_is_named(packed, out):
    with pytest.raises(DataError, match=r"has no nowhere\.txt") as caught:
        unpack(packed, out, members=("a/one.txt", "nowhere.txt"))
    assert caught.value.code == "data-archive"


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7])
def test_a_truncated_archive_is_refused_and_names_the_way_out(packed, out, kept):
    content = packed.read_bytes()
    packed.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=r"truncated or damaged\. Delete") as caught:
        unpack(packed, out)
    assert caught.value.code == "data-archive"


def test_a_zip_with_a_name_that_is_no_text_is_refused(out, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a/\u00e9.txt", "hello")
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xff\xfe"))
    with pytest.raises(DataError) as caught:
        unpack(path, out)
    assert caught.value.code == "data-archive"


HOSTILE = ["../evil", "a/../../evil", "/evil", "a\\..\\evil", "C:evil"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_a_member_that_leads_outside_is_refused_even_if_not_wanted(tmp_path, out, made, name, kind):
    path = tmp_path / f"x.{kind}"
    path.write_bytes({"zip": made.make_zip, "tgz": made.make_tgz}[kind]({name: b"evil", "good": b"good"}))
    with pytest.raises(DataError, match="leads outside the target folder") as caught:
        unpack(path, out, members=("good",))
    assert caught.value.code == "data-unsafe-archive"
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, out, made, kind):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc"
    path = tmp_path / "x.tgz"
    path.write_bytes(made.make_tgz({}, extra=(info,)))
    with pytest.raises(DataError, match="link or a device"):
        unpack(path, out)
    assert tree(out) == {}


def test_a_symbolic_link_in_a_zip_is_refused(tmp_path, out):
    path = tmp_path / "x.zip"
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(info, "/etc")
    with pytest.raises(DataError, match="link or a device"):
        unpack(path, out)


def test_an_unwanted_link_does_no_harm(tmp_path, out, made):
    info = tarfile.TarInfo("doc/link")
    info.type, info.linkname = tarfile.SYMTYPE, "../../etc"
    path = tmp_path / "x.tgz"
    path.write_bytes(made.make_tgz({"good": b"good"}, extra=(info,)))
    unpack(path, out, members=("good",))
    assert tree(out) == {"good": b"good"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_comes_twice_is_refused(tmp_path, out):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("one", b"first")
        zipped.writestr("one", b"second")
    with pytest.raises(DataError, match="same member twice"):
        unpack(path, out)


def test_any_other_file_is_copied_as_it_is(tmp_path, out):
    path = tmp_path / "labels.gz"
    path.write_bytes(b"not looked into")
    unpack(path, out)
    assert tree(out) == {"labels.gz": b"not looked into"}


def test_a_deb_with_zstandard_goes_through_dpkg(tmp_path, out, made, monkeypatch):
    plain, asked = made.make_deb(FILES), []
    start = plain.index(b"data.tar.gz")
    path = tmp_path / "x.deb"
    path.write_bytes(plain.replace(b"data.tar.gz ", b"data.tar.zst"))

    def run(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=plain[start + 60 :], stderr=b"")

    monkeypatch.setattr(_archive.subprocess, "run", run)
    unpack(path, out)
    assert tree(out) == FILES
    assert asked == [["dpkg-deb", "--fsys-tarfile", str(path)]]
