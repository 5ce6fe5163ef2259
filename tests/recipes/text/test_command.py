"""The text recipes' contract at the command line: one JSON object on standard output, and nothing else."""

import json

import pytest

import reticent.cli
from reticent.recipes.text import _pretrained
from tests.recipes.text.encoders import save_masked
from tests.recipes.text.models import byte_tokenizer, llama

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
SHORT = ("num_steps=2", "expected_batch_size=8", "max_length=24")


@pytest.fixture
def rows(tmp_path):
    """Forty labelled texts."""
    path = tmp_path / "rows.jsonl"
    lines = [{"text": f"a {('bad', 'good')[k % 2]} film", "label": ("no", "yes")[k % 2]} for k in range(40)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def settings_of(recipe, folder):
    """A tiny model in `folder`, and what names it."""
    if recipe == "text-classify":
        save_masked(folder)
        return [f"model={folder}", "labels=no,yes", "objective=mask", "template=sst-2"]
    llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return [f"model={folder}"]


@pytest.mark.parametrize("recipe", ["text-classify", "text-generate"])
def test_what_figures_should_say_of_a_known_model_is_shown_and_kept(
    tmp_path, rows, capfd, monkeypatch, recipe
):
    monkeypatch.setattr(_pretrained, "pretrained_note", lambda name: "rounded to 4 bits")
    settings = [*settings_of(recipe, tmp_path / "tiny"), f"data={rows}", *SHORT]
    flags = [part for setting in settings for part in ("--set", setting)]
    with pytest.raises(SystemExit) as left:
        reticent.cli.main(["train", recipe, *flags, "--out", str(tmp_path / "run")], prog_name="reticent")
    out, err = capfd.readouterr()
    assert not left.value.code, err
    assert "rounded to 4 bits" in out + err
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["data"]["model_note"] == f"{tmp_path / 'tiny'}: rounded to 4 bits"
    assert "rounded to 4 bits" in (tmp_path / "run" / "report.html").read_text()
    assert "rounded to 4 bits" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize("epsilon", ["3", "inf"])
@pytest.mark.parametrize("recipe", ["text-classify", "text-generate"])
def test_standard_output_is_one_json_object(tmp_path, rows, capfd, recipe, epsilon) -> None:
    settings = [*settings_of(recipe, tmp_path / "tiny"), f"data={rows}", f"epsilon={epsilon}", *SHORT]
    flags = [part for setting in settings for part in ("--set", setting)]
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        reticent.cli.main(
            ["train", recipe, *flags, "--out", str(tmp_path / "run"), "--json"], prog_name="reticent"
        )
    out, err = capfd.readouterr()
    assert not left.value.code, err
    assert out.count("\n") == 1 and out.endswith("\n")
    result = json.loads(out)
    private = epsilon != "inf"
    assert result["private"] is private
    assert 0 < result["epsilon"] <= 3 if private else result["epsilon"] is None
    assert 0 < result["delta"] < 1
    assert result["run"] == str(tmp_path / "run")
    assert result["test_loss"] > 0
    assert ("test_accuracy" in result) == (recipe == "text-classify")
    assert 0 <= result.get("test_accuracy", 0) <= 1
    assert "2/2" in err, "what is going on is told on standard error"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_loss"] == result["test_loss"]
