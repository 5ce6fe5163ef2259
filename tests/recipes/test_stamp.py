"""What a process remembers of files: not for longer than they stay the same, and not of another folder."""

import os

from reticent.recipes._stamp import remembered, stamp_of


def test_a_file_is_read_again_when_it_changed_or_the_same_name_is_another_file(tmp_path, monkeypatch):
    reads = []

    @remembered(lambda path: [path], maxsize=4)
    def read(path):
        reads.append(path)
        with open(path) as file:
            return file.read()

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    monkeypatch.chdir(tmp_path / "one")
    assert [read("a.txt"), read("a.txt")] == ["one", "one"] and len(reads) == 1
    monkeypatch.chdir(tmp_path / "two")
    assert read("a.txt") == "two" and len(reads) == 2
    (tmp_path / "two" / "a.txt").write_text("two, longer")
    assert read("a.txt") == "two, longer" and len(reads) == 3


def test_a_folder_is_another_when_a_file_in_it_comes_or_goes(tmp_path):
    (tmp_path / "class").mkdir()
    os.utime(tmp_path / "class", (1, 1))
    before = stamp_of(tmp_path)
    assert stamp_of(tmp_path) == before
    (tmp_path / "class" / "1.png").write_bytes(b"")
    assert stamp_of(tmp_path) != before
    assert stamp_of(tmp_path / "nothing") == stamp_of(tmp_path / "nothing")
