"""The public formats of table-to-text and dialog, on small files in those formats made for these tests."""

import json

import pytest

from reticent.errors import DataError
from reticent.recipes.text._answers import _read_jsonl
from reticent.recipes.text._dialog import read_personachat
from reticent.recipes.text._pairs import grouped, pairs
from reticent.recipes.text._table_to_text import read_dart, read_e2e, read_webnlg

E2E = """\
mr,ref
"name[The Vaults], eatType[pub], priceRange[more than £30]","The Vaults pub costs more than £30, ""really""."
"name[Alimentum], area[city centre]",Alimentum is in the centre.
"name[The Vaults], eatType[pub], priceRange[more than £30]",A pub called The Vaults.
"""

DART = [
    {
        "tripleset": [
            ["Mars Hill College", "JOINED", "1973"],
            ["Mars Hill College", "LOCATION", "Mars Hill"],
        ],
        "subtree_was_extended": False,
        "annotations": [
            {"source": "WikiSQL_decl_sents", "text": "A school from Mars Hill that joined in 1973."},
            {"source": "WikiTableQuestions_lily", "text": " Mars Hill College joined in 1973. "},
        ],
    },
    {"tripleset": [["A", "B", "C"]], "annotations": [{"source": "e2e", "text": "A is B of C."}]},
]

WEBNLG = """\
<?xml version="1.0" encoding="UTF-8"?>
<benchmark>
  <entries>
    <entry category="Airport" eid="1" shape="(X (X))" shape_type="NA" size="2">
      <originaltripleset><otriple>Aarhus_Airport | cityServed | "Aarhus"@en</otriple></originaltripleset>
      <modifiedtripleset>
        <mtriple>Aarhus_Airport | cityServed | Aarhus</mtriple>
        <mtriple>Aarhus_Airport | elevation | 25.0</mtriple>
      </modifiedtripleset>
      <lex comment="good" lid="Id1" lang="en">Aarhus Airport serves Aarhus &amp; lies 25 m high.</lex>
      <lex comment="" lid="Id2">The airport of Aarhus.</lex>
      <lex comment="bad" lid="Id3" lang="en">Airport the.</lex>
      <lex comment="good" lid="Id4" lang="ru">Аэропорт.</lex>
    </entry>
    <entry category="Airport" eid="2" size="1">
      <modifiedtripleset><mtriple>A | b | C</mtriple></modifiedtripleset>
      <lex comment="good" lid="Id1" lang="ru">только</lex>
    </entry>
  </entries>
</benchmark>
"""

PERSONA_LINES = """\
1 your persona: i like to ski.
2 your persona: i have two cats.
3 partner's persona: i am a nurse.
4 hello , how are you ?\tfine , i was skiing .\t\tno|fine , i was skiing .
5 nice . alone ?\twith my cats .\t\twrong|with my cats .
1 your persona: i am old.
2 hi\tgood day
"""

PERSONA_JSON = {
    "train": [
        {
            "personality": ["i like to ski ."],
            "utterances": [
                {"candidates": ["wrong", "fine ."], "history": ["hello"]},
                {"candidates": ["wrong", "my cats ."], "history": ["hello", "fine .", "alone ?"]},
            ],
        }
    ],
    "valid": [{"personality": ["x"], "utterances": [{"candidates": ["y"], "history": ["z"]}]}],
}


@pytest.fixture
def file(tmp_path):
    """Text or JSON value -> path of a file that holds it."""

    def write(content, name="file.txt"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def refused(read, path, match):
    with pytest.raises(DataError, match=match) as caught:
        read(path)
    assert caught.value.code == "text-format"
    return str(caught.value)


def test_e2e_joins_the_references_of_one_table(file):
    first, second = read_e2e(file(E2E))
    assert first.source == "name : The Vaults | eatType : pub | priceRange : more than £30"
    assert first.targets == ('The Vaults pub costs more than £30, "really".', "A pub called The Vaults.")
    assert (second.source, len(second.targets)) == ("name : Alimentum | area : city centre", 1)


def test_e2e_reads_a_byte_order_mark_and_capital_columns(file):
    assert len(read_e2e(file("\ufeff" + E2E.replace("mr,ref", "MR,REF")))) == 2


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "does not name columns"),
        ("mr,text\na[b],c\n", "does not name columns"),
        ("mr,ref\n", "no example"),
        ("mr,ref\nname[x]\n", "line 2 has no mr or no ref"),
        ("mr,ref\nsecret person,hello\n", "line 2 is not a list"),
        ('mr,ref\nname[x],"torn\n', "after line 1"),
    ],
)
def test_e2e_says_where_a_file_breaks_and_not_what_stands_there(file, content, match):
    assert "secret" not in refused(read_e2e, file(content), match)


def test_dart_writes_triples_out(file):
    first, second = read_dart(file(DART))
    assert first.source == "Mars Hill College : JOINED : 1973 | Mars Hill College : LOCATION : Mars Hill"
    assert first.targets[1] == "Mars Hill College joined in 1973."
    assert second.targets == ("A is B of C.",)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not JSON"),
        (f"[{'7' * 5000}]", "not JSON that can be read"),
        ({}, "not a list"),
        ([], "no example"),
        ([{"tripleset": [["a", "b"]], "annotations": [{"text": "x"}]}], "entry 1"),
        ([{"tripleset": [["a", "b", "c"]], "annotations": []}], "entry 1"),
        ([{"tripleset": [["a", "b", "c"]], "annotations": [{"text": None}]}], "entry 1"),
        ([7], "entry 1"),
        *(
            ([{"tripleset": [["a", "b", "c"]], "annotations": notes}], "entry 1")
            for notes in (5, True, {"text": "x"}, "x", 0.5, None)
        ),
    ],
)
def test_dart_refuses_what_is_not_dart(file, content, match):
    refused(read_dart, file(content), match)


def test_webnlg_keeps_good_texts_of_its_language(file):
    (only,) = read_webnlg(file(WEBNLG))
    assert only.source == "Aarhus_Airport : cityServed : Aarhus | Aarhus_Airport : elevation : 25.0"
    assert only.targets == ("Aarhus Airport serves Aarhus & lies 25 m high.", "The airport of Aarhus.")
    assert len(read_webnlg(file(WEBNLG), language="ru")) == 2
    assert len(read_webnlg(file(WEBNLG), keep=("bad",))[0].targets) == 1


ATTACKS = {
    "entity": '<!DOCTYPE b [<!ENTITY e "x">]><benchmark><entries>&e;</entries></benchmark>',
    "outside": '<!DOCTYPE b [<!ENTITY e SYSTEM "file:///etc/hostname">]><benchmark>&e;</benchmark>',
    "document type": '<!DOCTYPE b SYSTEM "http://localhost/x.dtd"><benchmark/>',
    "billion": "<!DOCTYPE b ["
    + '<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{k + 1} "{f"&a{k};" * 10}">' for k in range(10))
    + "]><benchmark>&a10;</benchmark>",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_webnlg_refuses_hostile_xml(file, attack):
    refused(read_webnlg, file(ATTACKS[attack]), "declares what is not read")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("<benchmark>", "not XML"),
        ("<benchmark/>", "no example"),
        (WEBNLG.replace("Aarhus_Airport | elevation | 25.0", "Aarhus_Airport"), "entry 1 lacks triples"),
    ],
)
def test_webnlg_refuses_what_is_not_webnlg(file, content, match):
    refused(read_webnlg, file(content), match)


def test_persona_lines_give_a_reply_its_persona_and_history(file):
    first, second, third = read_personachat(file(PERSONA_LINES))
    assert first.source == "persona: i like to ski.\npersona: i have two cats.\nhello , how are you ?"
    assert second.source == f"{first.source}\nfine , i was skiing .\nnice . alone ?"
    assert (second.targets, third.source) == (("with my cats .",), "persona: i am old.\nhi")
    assert [row.unit for row in (first, second, third)] == ["1", "1", "2"]


def test_what_only_the_partner_knows_is_not_given_to_the_speaker(file):
    assert not any("nurse" in row.source for row in read_personachat(file(PERSONA_LINES)))


def test_persona_json_takes_the_last_candidate(file):
    first, second = read_personachat(file(PERSONA_JSON))
    assert (first.targets, second.source) == (
        ("fine .",),
        "persona: i like to ski .\nhello\nfine .\nalone ?",
    )
    assert read_personachat(file(PERSONA_JSON), split="valid")[0].targets == ("y",)


@pytest.mark.parametrize(("most", "left"), [(0, []), (1, ["nice . alone ?"]), (9, None)])
def test_history_is_cut_from_its_beginning(file, most, left):
    source = read_personachat(file(PERSONA_LINES), max_history=most)[1].source
    said = source.split("\n")[2:]
    assert said == left if left is not None else len(said) == 3


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "no reply"),
        ("hello\tworld\n", "line 1 does not begin"),
        ("2 hello\tworld\n", "line 1 does not follow"),
        ("1 a\tb\n3 c\td\n", "line 2 does not follow"),
        ("1 hello\n", "line 1 has no reply"),
        ("[1]", "no list of dialogs"),
        (f"[{'7' * 5000}]", "not JSON that can be read"),
        ({"train": [{"personality": ["x"]}]}, "dialog 1 lacks"),
        ({"train": [{"personality": ["x"], "utterances": [{"history": ["a"]}]}]}, "dialog 1 has a turn"),
    ],
)
def test_persona_chat_refuses_what_is_in_neither_format(file, content, match):
    refused(read_personachat, file(content), match)


def test_prompts_with_an_integer_of_thousands_of_digits_are_refused(file):
    refused(_read_jsonl, file(f'{{"source": {"7" * 5000}}}'), "line 1 is no object")


def test_a_missing_file_and_one_that_is_no_text_are_refused(tmp_path):
    refused(read_e2e, tmp_path / "none.csv", "cannot be read")
    (tmp_path / "bytes").write_bytes(b"mr,ref\n\xff\xfe")
    refused(read_e2e, tmp_path / "bytes", "byte 7 is not UTF-8")


def test_rows_and_groups_are_inverse(file):
    examples = read_e2e(file(E2E))
    assert len(pairs(examples)) == 3
    assert grouped(pairs(examples)) == examples


def test_no_repr_shows_a_record(file):
    assert "Vaults" not in repr(read_e2e(file(E2E)))
