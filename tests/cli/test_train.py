"""`reticent train` and `reticent resume`, as a person and as a program call them."""

import json
import shutil

import pytest

import reticent.cli
from reticent.cli._run_screen import _scores
from reticent.recipes import _arrays as arrays_module
from reticent.recipes.vision import _recipe as vision_module

SHORT = ["--set", "num_steps=4", "--set", "expected_batch_size=40", "--set", "checkpoint_every=2"]


@pytest.fixture
def call(capsys):
    """Run the command line; status, standard output, standard error."""

    def run(*args):
        with pytest.raises(SystemExit) as left:
            reticent.cli.main([str(a) for a in args], prog_name="reticent")
        said = capsys.readouterr()
        return left.value.code or 0, said.out, said.err

    return run


def test_json_is_one_object_on_the_last_line_and_all_else_is_on_standard_error(tmp_path, call):
    status, out, err = call("train", "digits", "--out", tmp_path / "run", "--json", *SHORT)
    assert status == 0
    assert out.count("\n") == 1
    result = json.loads(out)
    assert result["private"] is True
    assert 0 < result["epsilon"] <= 3.0
    assert result["delta"] == 1e-5
    assert 0 <= result["test_accuracy"] <= 1
    assert result["run"] == str(tmp_path / "run")
    assert result["report"] == str(tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").exists()
    assert "4/4" in err


def test_the_last_screen_shows_what_matters(tmp_path, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = call("train", "digits", "--out", tmp_path / "run", "--set", "twin=true", *SHORT)
    assert status == 0
    for text in (
        "epsilon",
        "from the ledger",
        "test accuracy",
        "without privacy",
        " x ",
        "report.html",
        "1e-05",
    ):
        assert text in out


@pytest.mark.parametrize(
    ("setting", "why"), [("noise_seed=1", "noise is reproducible"), ("epsilon=inf", "trained without noise")]
)
def test_a_run_without_privacy_says_so(tmp_path, call, setting, why):
    status, out, _ = call("train", "digits", "--out", tmp_path / "a", "--json", "--set", setting, *SHORT)
    assert status == 0
    result = json.loads(out)
    assert (result["private"], result["epsilon"]) == (False, None)
    status, out, _ = call("resume", tmp_path / "a")
    assert status == 0
    assert "NONE" in out
    assert why in out


def test_a_dry_run_reads_no_data_and_writes_nothing(tmp_path, call, monkeypatch):
    def no_data(*_, **__):
        raise AssertionError("data were read")

    for module in (arrays_module, vision_module):
        monkeypatch.setattr(module, "load", no_data)
    monkeypatch.chdir(tmp_path)
    status, out, _ = call("train", "--dry-run", "--json")
    assert status == 0
    shown = json.loads(out)
    assert shown["recipe"] == "fashion-mnist"
    assert 2.9 < shown["epsilon"] <= 3.0
    assert shown["noise_multiplier"] > 0
    assert shown["epsilon"] == min(shown["epsilon_rdp"], shown["epsilon_pld"])
    assert shown["num_parameters"] == 26_106 and shown["device_hours"] > 0
    status, out, _ = call("train", "digits", "--dry-run", "--set", "epsilon=inf")
    assert status == 0
    assert "Nothing was read" in out
    assert list(tmp_path.iterdir()) == []


def test_without_out_the_run_goes_to_a_folder_named_after_recipe_and_time(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call("train", "digits", "--json", *SHORT)
    assert status == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-2")
    assert json.loads(out)["run"] == f"runs/{folder.name}"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["digits", "--set", "epsilon=-1"], "epsilon: input should be greater than 0, got -1"),
        (["digits", "--set", "epsilom=1"], "Did you mean 'epsilon'?"),
        (["digits", "--set", "lr=x", "--set", "delta=2"], "2 problems with the settings: (1) delta: "),
        (["digist"], "Did you mean 'digits'?"),
        (["none.toml"], "Cannot read the config file"),
        (["digits", "--sett", "lr=1"], "No such option"),
        (["x" * 5000], "File name too long"),
        (["digits", "--set", "lr=1e300"], "lr must be at most 1e+30"),
        (["digits", "--set", "max_norm=1e-44", "--dry-run"], "[clip-norm]"),
    ],
)
def test_bad_input_is_one_line_and_status_two(tmp_path, call, args, text):
    status, out, err = call("train", *args, "--json", "--out", tmp_path / "run")
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert text in err
    assert not (tmp_path / "run").exists()


def test_a_config_whose_recipe_is_no_name_is_refused(tmp_path, call):
    (tmp_path / "c.toml").write_text('recipe = ["digits"]')
    status, _, err = call("train", tmp_path / "c.toml", "--out", tmp_path / "run")
    assert status == 2
    assert "[unknown-recipe]" in err


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path, call):
    (tmp_path / "file").write_text("mine")
    status, out, err = call("train", "digits", "--out", tmp_path / "file" / "run")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "file/run" in err


def test_weights_that_diverge_end_in_null_and_not_in_an_error(tmp_path, call):
    lost = ["--set", "lr=1e30", "--set", "max_norm=1e15", *SHORT]
    status, out, _ = call("train", "digits", "--out", tmp_path / "run", "--json", *lost)
    assert status == 0
    assert json.loads(out)["test_loss"] is None
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] is None


def test_a_delta_above_one_over_n_is_warned_of(tmp_path, call):
    status, _, err = call("train", "digits", "--out", tmp_path / "run", "--set", "delta=0.01", *SHORT)
    assert status == 0
    assert "above 1/N" in " ".join(err.split())


def test_epsilon_is_never_rounded_down(tmp_path, call):
    tiny = ["--set", "epsilon=1e-6", *SHORT]
    status, out, err = call("train", "digits", "--out", tmp_path / "run", *tiny)
    assert status == 0
    assert "epsilon 0.01 of 1e-06" in " ".join(err.split())
    spent = float(next(line for line in out.splitlines() if "epsilon" in line).split()[3])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epsilon"] <= spent <= 1e-6


def test_a_folder_that_is_not_empty_is_refused(tmp_path, call):
    (tmp_path / "notes.txt").write_text("mine")
    status, out, err = call("train", "digits", "--out", tmp_path)
    assert (status, out) == (2, "")
    assert "[out-exists]" in err
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run, to be copied."""
    run = tmp_path_factory.mktemp("finished") / "run"
    args = ["train", "digits", "--out", str(run), "--json", *SHORT]
    reticent.cli.main(args, prog_name="reticent", standalone_mode=False)
    return run


@pytest.fixture
def stopped(tmp_path, finished):
    """A run stopped after its last checkpoint: its result is not there."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


def test_resume_of_a_finished_run_gives_the_same_numbers(finished, call):
    before = json.loads((finished / "result.json").read_text())
    status, out, _ = call("resume", finished, "--json")
    assert status == 0
    assert json.loads(out) == {**before, "report": str(finished / "report.html")}


def test_resume_ends_a_stopped_run(stopped, call):
    status, out, _ = call("resume", stopped, "--json")
    assert status == 0
    result = json.loads(out)
    assert result["num_steps"] == 4
    assert result["run"] == str(stopped)


def test_epsilon_of_a_finished_run_is_the_ledgers_whatever_its_result_says(finished, tmp_path, call):
    run = shutil.copytree(finished, tmp_path / "run")
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**before, "epsilon": 0.1, "num_steps": 1}))
    _, out, _ = call("resume", run, "--json")
    assert (json.loads(out)["epsilon"], json.loads(out)["num_steps"]) == (before["epsilon"], 4)
    (run / "result.json").write_text("[]")
    _, out, _ = call("resume", run, "--json")
    assert json.loads(out)["epsilon"] == before["epsilon"]
    delete_ledger(run)
    status, out, err = call("resume", run, "--json")
    assert (status, out) == (2, "")
    assert "[ledger-missing]" in err


@pytest.mark.parametrize("command", ["account", "report"])
@pytest.mark.parametrize("lines", [1, 3, 5])
def test_a_ledger_shorter_than_its_checkpoints_states_no_epsilon(finished, tmp_path, call, command, lines):
    run = shutil.copytree(finished, tmp_path / "run")
    kept = (run / "ledger.jsonl").read_text().splitlines(keepends=True)[:lines]
    (run / "ledger.jsonl").write_text("".join(kept))
    status, out, err = call(command, run, "--json")
    assert (status, out) == (2, "")
    assert "[ledger-mismatch]" in err


def edit(*path, to):
    def damage(run):
        about = json.loads((run / "run.json").read_text())
        inner = about
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = to
        (run / "run.json").write_text(json.dumps(about))

    return damage


def make_plain(run):
    """As if the run had been without privacy from the start."""
    for change in (edit("config", "epsilon", to="inf"), edit("plan", to=None), edit("private", to=False)):
        change(run)


def make_plain_without_a_ledger(run):
    make_plain(run)
    delete_ledger(run)


def delete_all_but_the_weights(run):
    for pattern in ("ledger*", "checkpoint*", "metrics*"):
        for path in run.glob(pattern):
            path.unlink()


def damage_ledger(run):
    text = (run / "ledger.jsonl").read_text()
    (run / "ledger.jsonl").write_text(text.replace('"delta":1e-05', '"delta":1e-06'))


def damage_checkpoints(run):
    for path in run.glob("checkpoint-*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])


def damage_list(run):
    (run / "checkpoint.json").write_text("{")


def damage_config(run):
    about = json.loads((run / "run.json").read_text())
    about["config"]["lr"] = "fast"
    (run / "run.json").write_text(json.dumps(about))


def delete_ledger(run):
    (run / "ledger.jsonl").unlink()


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (damage_ledger, "ledger-damaged"),
        (delete_ledger, "ledger-missing"),
        (damage_checkpoints, "checkpoint-damaged"),
        (damage_list, "checkpoint-index"),
        (damage_config, "config"),
        (shutil.rmtree, "not-a-run"),
        (edit("config", "epsilon", to="inf"), "run-edited"),
        (make_plain, "run-edited"),
        (make_plain_without_a_ledger, "checkpoint-mismatch"),
        (edit("config", "epsilon", to=8.0), "run-edited"),
        (edit("config", "num_steps", to=80), "run-edited"),
        (edit("plan", "clipping", "max_norm", to=1000.0), "run-edited"),
        (edit("settings", "noise_seed", to=5), "run-edited"),
        (edit("settings", "mystery", to=5), "not-a-run"),
        (edit("plan", "noise_multiplier", to=50.0), "ledger-plan"),
        (edit("run_id", to="another"), "ledger-plan"),
        (edit("config", to=[1]), "not-a-run"),
        (edit("recipe", to=[1]), "not-a-run"),
        (delete_all_but_the_weights, "ledger-missing"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(stopped, call, damage, code):
    damage(stopped)
    status, out, err = call("resume", stopped, "--json")
    assert (status, out) == (2, "")
    assert f"[{code}]" in err
    assert "Traceback" not in err


def test_scores_of_each_class_are_left_to_the_report():
    scores = {"test_accuracy": 0.5, "test_class_accuracy": [0.1, 0.9], "test_loss": 1.0, "test_auc": None}
    assert _scores(scores) == [("test accuracy", "50.00%"), ("test auc", "not finite")]


def test_a_restart_goes_on_with_the_run_and_never_begins_another(tmp_path, call, monkeypatch):
    run = tmp_path / "run"
    again = ("train", "digits", "--out", run, "--resume", "--json", *SHORT)
    first = json.loads(call(*again)[1])  # there is none yet: a new one
    ledger = (run / "ledger.jsonl").read_bytes()
    second = json.loads(call(*again)[1])
    assert first == second and second["num_steps"] == 4
    assert (run / "ledger.jsonl").read_bytes() == ledger
    status, _, err = call(*again, "--set", "epsilon=2", "--set", "lr=0.1")
    assert status != 0 and "other-run" in err and "epsilon, lr differ" in err.replace("\n", " ")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.chdir(tmp_path)
    for words in (["--resume"], []):
        status, _, err = call("train", "digits", *words, *SHORT)
        assert status != 0 and "restart-folder" in err
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
