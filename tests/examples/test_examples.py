"""Every example runs as a person would run it, and says what it should."""

import csv
import importlib.util
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from tests.support.pages import ROOT

EXAMPLES = ROOT / "examples"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example in an empty folder, in this process; what it printed."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        spec = importlib.util.spec_from_file_location("example", EXAMPLES / name)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main()
        return capsys.readouterr().out

    return run


def epsilons(text):
    return [float(found) for found in re.findall(r"epsilon (\d+\.\d+)", text)]


def tiny_model(folder, kind):
    from tests.recipes.text.models import byte_tokenizer, gpt2

    if kind == "decoder":
        gpt2().save_pretrained(folder)
    else:
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=64,
        )  # fmt: skip
        BertForSequenceClassification(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_own_texts(run, tmp_path):
    with (tmp_path / "mail.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows([f"mail {k}", "ham" if k % 2 else "spam"] for k in range(60))
    model = tiny_model(tmp_path / "encoder", "encoder")
    printed = run(
        "own_texts.py", "mail.csv", "--labels", "ham,spam", "--model", model, "--set", "num_steps=2",
        "--set", "max_length=16",
    )  # fmt: skip
    assert 0 < epsilons(printed)[0] <= 3.0
    assert (tmp_path / "runs" / "texts" / "report.html").exists()


def test_own_images(run, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 2)):
        for label in ("cats", "dogs"):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / label / f"{k}.png")
    printed = run("own_images.py", "photos", "--set", "num_steps=2", "--set", "expected_batch_size=4")
    assert 0 < epsilons(printed)[0] <= 3.0


def test_own_table(run):
    printed = run("own_table.py")
    assert 0 < epsilons(printed)[0] <= 3.0
    assert float(re.findall(r"accuracy (\d\.\d+)", printed)[0]) > 0.7


def test_own_loop(run):
    assert 0 < epsilons(run("own_loop.py", "--steps", 5))[0] < 3.0


def test_a_reviewer_finds_the_stated_epsilon_again(run, tmp_path):
    run("paper_last_layer.py", "--epsilon", "8.0", "--out", tmp_path / "runs")
    for method in ("one-step", "fc"):
        found = re.findall(
            r"at most (\S+); the run states (\S+)", run("check_a_run.py", tmp_path / f"runs/{method}-8")
        )
        theirs, stated = map(float, found[0])
        assert stated <= theirs < 1.35 * stated


def test_a_reviewer_is_told_of_reproducible_noise(run, tmp_path):
    from reticent.recipes import request
    from reticent.recipes import run as train

    train(request("last-layer", ["method=one-step", "noise_seed=1"]), out=tmp_path / "run")
    with pytest.raises(SystemExit, match="not private"):
        run("check_a_run.py", tmp_path / "run")


def test_paper_language(run, tmp_path):
    rows = [{"source": f"name {k}", "target": f"it is called {k}"} for k in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_model(tmp_path / "decoder", "decoder")
    settings = [
        part for s in ("num_steps=1", "expected_batch_size=8", "max_length=32") for part in ("--set", s)
    ]
    printed = run("paper_language.py", "rows.jsonl", "--model", model, "--epsilon", "8.0", *settings)
    full, lora, together = epsilons(printed)
    assert max(full, lora) <= 8.0 < together


def test_paper_images(run):
    printed = run("paper_images.py", "--steps", 3)
    assert all(epsilon <= 3.0 for epsilon in epsilons(printed))
    assert '"num_steps": 2468' in printed


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "first_run.ipynb").read_text(encoding="utf-8"))
    names = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # kept without: they would go stale
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["accuracy"] > 0.5
    assert 0 < names["report"].epsilon <= 3.0
    assert sorted(names["noise"].values(), reverse=True) == list(names["noise"].values())
    assert "[batch-norm]" in capsys.readouterr().out


def test_the_list_of_examples_is_whole():
    listed = set(
        re.findall(r"\]\((\w+\.(?:py|ipynb))\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    )
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
