"""Public formats as data to train on: rows stay where they stand, and prompts later look as they did."""

import sys

import pytest

from reticent.account.ledger import read_run_ledger
from reticent.errors import ConfigError, ReticentError
from reticent.recipes import request, run
from reticent.recipes.text import _answers as answers
from reticent.recipes.text import answer, read_prompts
from reticent.recipes.text._formats import table_in
from reticent.recipes.text._generate import Decoding
from reticent.recipes.text.language import TEXT_GENERATE
from reticent.recipes.text.published import check_size
from tests.recipes.text.models import byte_tokenizer, llama
from tests.recipes.text.test_readers import DART, E2E, PERSONA_JSON, PERSONA_LINES, WEBNLG, file

__all__ = ["file"]
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
NUM_MEALS = 24


def meals(changed=None):
    """An E2E file in which two references of a table are never neighbours."""
    lines = [f'"name[P{k % 8}], food[F{k % 8}]",P{k % 8} is number {k}.' for k in range(NUM_MEALS)]
    if changed is not None:
        lines[changed] = '"name[Q]",Q is another.'
    return "\n".join(["mr,ref", *lines]) + "\n"


@pytest.fixture
def folder(tmp_path):
    llama(context=96).save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def asked(folder, path, *more):
    few = ["num_steps=2", "expected_batch_size=4", "max_length=64", "epsilon=8", "adaptation=last-layer"]
    return request("text-generate", [f"model={folder}", f"data={path}", *few, *more])


@pytest.mark.parametrize(
    ("form", "content", "sources", "num_rows"),
    [
        ("e2e", E2E, "name : Alimentum | area : city centre", 3),
        ("dart", DART, "A : B : C", 3),
        ("webnlg", WEBNLG, "Aarhus_Airport : cityServed : Aarhus | Aarhus_Airport : elevation : 25.0", None),
        ("persona-chat", PERSONA_LINES, "persona: i am old.\nhi", 3),
        ("persona-chat", PERSONA_JSON, "persona: i like to ski .\nhello", 2),
    ],
)
def test_each_reference_is_a_row(file, form, content, sources, num_rows):
    table = table_in(file(content), form)
    assert num_rows is None or len(table) == num_rows
    assert sources in table.columns["source"] and all(table.columns["target"])
    assert ("dialog" in table.columns) == (form == "persona-chat")


def test_no_row_moves_another_and_so_decides_what_is_held_out(folder, file):
    """Rows are held out by their numbers: joined by table, one row's table would move the rows behind it."""
    whole, changed = (
        TEXT_GENERATE.fetch(
            asked(folder, file(content, name), "format=e2e").config, report=print, progress=False
        )
        for name, content in (("a.csv", meals()), ("b.csv", meals(changed=8)))
    )
    for mine, other in ((whole.train, changed.train), (whole.test, changed.test)):
        assert len(mine) == len(other)
        assert sum(a != b for a, b in zip(mine, other, strict=True)) <= 1
    assert [target for _, target in whole.train] == sorted(
        (target for _, target in whole.train), key=lambda target: int(target[:-1].split()[-1])
    )


def test_a_run_on_e2e_reads_prompts_of_e2e_in_the_form_that_it_learned(folder, file, tmp_path, monkeypatch):
    path = file(meals(), "meals.csv")
    result = run(asked(folder, path, "format=e2e", "separator==>"), out=tmp_path / "run")
    assert result["private"] and read_run_ledger(tmp_path / "run").num_steps == 2
    learned = TEXT_GENERATE.fetch(asked(folder, path, "format=e2e").config, report=print, progress=False)
    seen = []
    monkeypatch.setattr(answers, "generate", lambda model, t, prompts, **_: seen.extend(prompts) or prompts)
    answer(tmp_path / "run", read_prompts(path, "e2e"), decoding=Decoding(max_new_tokens=2))
    assert {source + "=>" for source, _ in learned.train} <= set(seen)


def test_of_dialogs_the_unit_is_the_dialog(folder, file):
    path = file(PERSONA_LINES * 8)
    settings = asked(folder, path, "format=persona-chat", "user_column=dialog", "test_fraction=0.4")
    found = TEXT_GENERATE.fetch(settings.config, report=print, progress=False)
    assert TEXT_GENERATE.unit(settings.config) == "user"
    assert TEXT_GENERATE.num_examples(settings.config) == len(set(found.users)) < len(found.train)
    with pytest.raises(ReticentError, match="set user_column = dialog"):
        asked(folder, path, "format=persona-chat")


@pytest.mark.parametrize("name", ["bleu", "rouge_l", "nist", "meteor"])
def test_what_a_metric_lacks_is_told_before_a_model_is_read(file, tmp_path, monkeypatch, name):
    modules = {
        "bleu": "sacrebleu.metrics.bleu",
        "rouge_l": "rouge_score.rouge_scorer",
        "nist": "nltk.translate.nist_score",
        "meteor": "nltk.translate.meteor_score",
    }
    prompts = read_prompts(file(E2E, "test.csv"), "e2e")
    monkeypatch.setitem(sys.modules, modules[name], None)
    with pytest.raises(ReticentError, match=r"pip install 'reticent\[text-metrics\]'") as caught:
        answer(tmp_path / "no run", prompts, decoding=Decoding(max_new_tokens=2), metrics=[name])
    assert caught.value.code == "missing-library"


def test_meteor_without_wordnet_is_told_before_a_model_is_read(file, tmp_path, monkeypatch):
    def nowhere():
        raise ConfigError("METEOR needs WordNet", code="missing-library")

    monkeypatch.setattr("reticent.recipes.text._metrics._wordnet", nowhere)
    prompts = read_prompts(file(E2E, "test.csv"), "e2e")
    with pytest.raises(ConfigError, match="needs WordNet"):
        answer(tmp_path / "no run", prompts, decoding=Decoding(max_new_tokens=2), metrics=["meteor"])


@pytest.mark.parametrize("name", ["bleu", "rouge_l", "nist"])
def test_with_its_library_a_metric_goes_on_to_the_model(file, tmp_path, name):
    prompts = read_prompts(file(E2E, "test.csv"), "e2e")
    with pytest.raises(ConfigError) as caught:
        answer(tmp_path / "no run", prompts, decoding=Decoding(max_new_tokens=2), metrics=[name])
    assert caught.value.code == "no-text-model"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["format=e2e", "source_column=mr"], "source_column would be ignored"),
        (["format=e2e", "text_column=ref"], "text_column would be ignored"),
        (["format=dart"], "is not JSON"),
        (["format=csv"], "format: "),
        (["format=e2e", "user_column=dialog"], "no column 'dialog'; it has: source, target"),
        (["separator=x"], "separator would be ignored"),
    ],
)
def test_what_does_not_fit_a_format_is_refused_before_anything_is_spent(
    folder, file, tmp_path, settings, match
):
    with pytest.raises(ReticentError, match=match):
        run(asked(folder, file(meals(), "meals.csv"), *settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_published_table_to_text_runs_read_the_published_formats(file):
    config = request("e2e-gpt2", [f"data={file(meals(), 'a.csv')}", f"test_data={file(E2E, 'b.csv')}"]).config
    with pytest.raises(ReticentError, match=f"planned for the 42,061 .* has {NUM_MEALS}"):
        request("e2e-gpt2", []).recipe.fetch(config, report=print, progress=False)
    assert request("dart-gpt2", []).config.format == "dart"
    check_size(3, 3, "of any name")
