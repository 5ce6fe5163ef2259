"""A person's own files: the same rows whatever the format, and errors that show none of them."""

import json
import struct

import pyarrow
import pyarrow.parquet
import pytest

from reticent.data import has_split, read_table
from reticent.errors import DataError

ROWS = {"text": ["a, b", 'say "x"', "ü"], "label": ["0", "1", "0"]}


def write(path, rows=ROWS):
    match path.suffix:
        case ".jsonl":
            lines = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
            path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        case ".csv":
            quoted = [
                ",".join('"' + v.replace('"', '""') + '"' for v in values)
                for values in zip(*rows.values(), strict=True)
            ]
            path.write_text("\n".join([",".join(rows), *quoted]) + "\n", encoding="utf-8")
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.table(rows), path)
        case "":
            folder(path, rows)
    return path


def folder(path, rows=ROWS):
    path.mkdir(parents=True)
    table = pyarrow.table(rows)
    for number in range(2):  # two streams, as large sets are saved
        with pyarrow.ipc.new_stream(path / f"data-{number}.arrow", table.schema) as stream:
            stream.write_table(table.slice(number * 2, 2))
    state = {"_data_files": [{"filename": f"data-{number}.arrow"} for number in range(2)]}
    (path / "state.json").write_text(json.dumps(state))


def refused(path, match, code, **settings):
    with pytest.raises(DataError, match=match) as caught:
        read_table(path, **settings)
    assert caught.value.code == code
    return str(caught.value)


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet", "saved"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    table = read_table(write(tmp_path / name))
    assert {name: list(column) for name, column in table.columns.items()} == ROWS
    assert len(table) == 3 and "say" not in repr(table)


def test_a_folder_of_splits_gives_the_one_asked_for(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    folder(tmp_path / "d" / "train")
    assert len(read_table(tmp_path / "d")) == 3
    assert has_split(tmp_path / "d", "train") and not has_split(tmp_path / "d", "test")
    refused(tmp_path / "d", "no split 'test'; it has: train", "data-missing", split="test")


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path):
    table = read_table(write(tmp_path / "t.csv"))
    with pytest.raises(
        DataError, match=r"no column 'body'; it has: text, label\. Name one with text_column"
    ) as caught:
        table.column("body", setting="text_column")
    assert caught.value.code == "data-column"


@pytest.mark.parametrize(
    ("name", "content", "match", "code"),
    [
        ("t.xlsx", "secret", "of no kind that is read", "data-format"),
        ("t.csv", "", "no rows", "data-empty"),
        ("t.csv", "a,b\n", "no rows", "data-empty"),
        ("t.csv", "a,a\nsecret,2\n", "two columns of one name", "data-format"),
        ("t.csv", "a,b\nsecret\n", "Row 1 of", "data-format"),
        ("t.csv", 'a,b\n"secret,2\n', "well-formed", "data-format"),
        ("t.jsonl", '{"a": "secret"}\n[1]\n', "Line 2 of", "data-format"),
        ("t.jsonl", '{"a": "secret"}\n{"b": 1}\n', "Row 2 of", "data-format"),
        ("t.jsonl", '{"a": "secret"}\n' + "[" * 10**5, "Line 2 of", "data-format"),
        ("t.jsonl", "", "no rows", "data-empty"),
        ("t.parquet", "secret", "cannot be read as Parquet", "data-format"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused_without_showing_it(tmp_path, name, content, match, code):
    (tmp_path / name).write_text(content)
    assert "secret" not in refused(tmp_path / name, match, code)


def test_what_is_not_utf_8_or_not_there_is_refused(tmp_path):
    no_text = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xf8")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"a": no_text}), tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", "cannot be read as Parquet", "data-format")
    (tmp_path / "t.csv").write_bytes(b"a\n\xff\n")
    refused(tmp_path / "t.csv", "not UTF-8", "data-format")
    refused(tmp_path / "none.csv", "no file or folder", "data-missing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "save_to_disk", "data-format")


def test_a_folder_cannot_name_files_outside_itself(tmp_path):
    folder(tmp_path / "d")
    (tmp_path / "d" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../other.arrow"}]}))
    refused(tmp_path / "d", "outside its folder", "data-format")


def test_an_arrow_file_that_points_outside_itself_is_refused_and_nothing_is_read_there(tmp_path):
    """pyarrow trusts a file's offsets: it would show what lies elsewhere in memory, or be killed for it."""
    path = folder(tmp_path / "d", ROWS) or tmp_path / "d"
    stream = path / "data-0.arrow"
    offsets = struct.pack("<3i", 0, 4, 11)  # of the two texts
    assert stream.read_bytes().count(offsets) == 1
    stream.write_bytes(stream.read_bytes().replace(offsets, struct.pack("<3i", 0, 4, 4096)))
    refused(path, r"cannot be read as Arrow \(ArrowInvalid\)", "data-format")
