"""`reticent generate RUN`."""

import json

import pytest
from click.testing import CliRunner

from reticent.cli.generate import command
from reticent.errors import ConfigError
from reticent.recipes.text._save import save_model
from tests.recipes.text.models import byte_tokenizer, gpt2

E2E = 'mr,ref\n"name[A], food[B]",A has B.\n"name[A], food[B]",B at A.\nname[C],C.\n'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a tiny random model."""
    folder = tmp_path_factory.mktemp("run")
    save_model(gpt2(), byte_tokenizer(), folder)
    (folder / "run.json").write_text(json.dumps({"config": {}}))
    return folder


def told(*arguments):
    shown = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout.splitlines()[-1])


def test_prompts_are_continued(run):
    found = told(run, "--prompt", "a cat", "--prompt", "b", "--max-new-tokens", 4)
    assert found["num_texts"] == 2 == len(found["texts"])
    assert found == told(run, "--prompt", "a cat", "--prompt", "b", "--max-new-tokens", 4)


def test_people_see_prompt_and_text(run):
    shown = CliRunner().invoke(command, [str(run), "--prompt", "a cat", "--max-new-tokens", "4"])
    assert shown.exit_code == 0 and shown.stdout.startswith("a cat")


def test_a_seed_repeats_a_sample(run):
    sample = [run, "--prompt", "a cat", "--max-new-tokens", 12, "--top-p", 1.0, "--seed"]
    assert told(*sample, 3) == told(*sample, 3)
    assert told(*sample, 3)["texts"] != told(*sample, 4)["texts"]


def test_a_file_with_references_is_scored_and_written(run, tmp_path):
    (tmp_path / "test.csv").write_text(E2E)
    out = tmp_path / "texts.jsonl"
    found = told(
        run, "--data", tmp_path / "test.csv", "--format", "e2e", "--max-new-tokens", 4,
        "--metric", "rouge_l", "--metric", "bleu", "--out", out,
    )  # fmt: skip
    assert found["num_texts"] == 2 and "texts" not in found
    assert 0 <= found["rouge_l"] <= 1 and 0 <= found["bleu"] <= 100
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["name : A | food : B", "name : C"]
    assert {*rows[0]} == {"prompt", "text"} and [p.name for p in tmp_path.glob(".*")] == []


def test_sources_get_the_form_they_had_in_training(run, tmp_path):
    trained = tmp_path / "run"
    save_model(gpt2(), byte_tokenizer(), trained)
    (trained / "run.json").write_text(
        json.dumps({"config": {"separator": " => ", "source_column": "source"}})
    )
    (given,) = told(run, "--prompt", "a cat => ", "--max-new-tokens", 4)["texts"]
    (made,) = told(trained, "--prompt", "a cat", "--max-new-tokens", 4)["texts"]
    assert made == given.strip()


def test_lines_and_json_lines_are_read(run, tmp_path):
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    (tmp_path / "p.jsonl").write_text('{"source": "one"}\n{"source": "two", "target": "x"}\n')
    for name in ("p.txt", "p.jsonl"):
        assert told(run, "--data", tmp_path / name, "--max-new-tokens", 2)["num_texts"] == 2


@pytest.mark.parametrize(
    ("arguments", "match", "code"),
    [
        (["--prompt", "x", "--metric", "cider"], "Java tokeniser", "text-metric"),
        (["--prompt", "x", "--metric", "blue"], "known are bleu", "text-metric"),
        (["--prompt", "x", "--metric", "bleu"], "1 of 1 prompts have none", "text-references"),
        (["--prompt", "x", "--beams", "2", "--top-p", "0.5"], "exclude", "text-decoding"),
        (["--prompt", "", "--max-new-tokens", "4"], "without tokens", "text-prompt"),
    ],
)
def test_what_cannot_be_done_is_refused(run, arguments, match, code):
    with pytest.raises(ConfigError, match=match) as caught:
        CliRunner().invoke(command, [str(run), *arguments], catch_exceptions=False)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "arguments", [[], ["--prompt", "x", "--data", "y"], ["--prompt", "x", "--format", "e2e"]]
)
def test_prompts_come_from_one_place(run, arguments):
    assert CliRunner().invoke(command, [str(run), *arguments]).exit_code == 2


@pytest.mark.parametrize("kind", ["none", "classifier"])
def test_a_run_that_cannot_continue_texts_is_refused(tmp_path, kind):
    if kind == "classifier":
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text(
            '{"architectures": ["BertForSequenceClassification"]}'
        )
    with pytest.raises(ConfigError, match="text-generate") as caught:
        CliRunner().invoke(command, [str(tmp_path), "--prompt", "x"], catch_exceptions=False)
    assert caught.value.code == "no-text-model"
