"""Keeping the best of a random number of runs: what is left, what it costs, and what is refused."""

import json
from contextlib import nullcontext

import pytest

from reticent.account import RandomTrials, choice_epsilon
from reticent.account.ledger import read_ledger
from reticent.errors import ConfigError
from reticent.recipes import go_on, request
from reticent.report import read_run, state
from reticent.sweep import Choice, _choose, read_sweep, sweep
from reticent.sweep._choice import refuse_private_scores
from tests.sweep.test_sweep import QUICK

TRIALS = RandomTrials(distribution="geometric", mean=3)


def asked(*grid, more=()):
    return read_sweep("digits", [*QUICK, "epsilon=1", *more], list(grid) or ["lr=0.001,4"])


@pytest.fixture
def four_runs(monkeypatch):
    """Four runs, of the candidates 0, 1, 0, 1."""
    monkeypatch.setattr(Choice, "draw", lambda self, num_candidates: [0, 1, 0, 1])


def test_only_the_best_run_is_left_and_its_epsilon_pays_for_the_choice(
    tmp_path, in_process, four_runs, seeded
):
    out = tmp_path / "out"
    result = sweep(asked(), out=out, validation_public=True, choice=Choice(trials=TRIALS))
    assert in_process == [0, 1, 2, 3]
    assert sorted(p.name for p in out.iterdir()) == ["best", "sweep.json"]
    assert result["best"]["settings"]["lr"] == 4
    segments = read_ledger(out / "best" / "ledger.jsonl").segments()
    costs = choice_epsilon([segments], trials=TRIALS, delta=1e-5).epsilon
    assert result["privacy"]["epsilon"] == pytest.approx(costs, rel=1e-9)
    assert costs > 1.2
    assert json.loads((out / "best" / "result.json").read_text())["epsilon"] == result["privacy"]["epsilon"]


def test_nothing_left_tells_of_the_number_of_runs(tmp_path, in_process, monkeypatch):
    """In no file of the folder that is left; the best run is the last."""
    written, names = {}, set()
    run_all = _choose.run_all

    def spy(recipe, trials, **options):
        names.update(trial.folder.name for trial in trials)
        run_all(recipe, trials, **options)

    monkeypatch.setattr(_choose, "run_all", spy)
    for count in (1, 5):
        monkeypatch.setattr(Choice, "draw", lambda self, n, count=count: [0] * (count - 1) + [1])
        out = tmp_path / f"out-{count}"
        sweep(asked(), out=out, validation_public=True, choice=Choice(trials=TRIALS))
        found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for name, data in found.items():
            assert not [word for word in (b"not-for-publication", *map(str.encode, names)) if word in data], (
                name
            )
        assert "seconds" not in json.loads(found["best/result.json"])
        assert json.loads(found["best/result.json"])["run"] == str(out / "best")
        assert json.loads(found["best/run.json"])["created"].endswith("T00:00:00+00:00")
        ages = {round(p.stat().st_mtime) for p in (out / "best").rglob("*")}
        assert max(ages) - min(ages) <= 2
        written[count] = found["sweep.json"].decode().replace(str(out), "OUT"), sorted(found)
    assert len(names) == 6 and not [name for name in names if name.isdecimal()]
    (one, files), (five, same_files) = written.values()
    assert files == same_files
    assert {**json.loads(one), "best": None} == {**json.loads(five), "best": None}


def test_the_report_of_the_kept_run_states_the_choices_epsilon(tmp_path, in_process, four_runs):
    result = sweep(asked(), out=tmp_path / "out", validation_public=True, choice=Choice(trials=TRIALS))
    statement = state(read_run(tmp_path / "out" / "best"))
    assert statement.report.epsilon == pytest.approx(result["privacy"]["epsilon"], rel=1e-9)
    assert "best of a random number of runs" in statement.warnings[0]
    assert statement.curve == ()


@pytest.mark.parametrize("result_lost", [False, True])
def test_the_kept_run_gone_on_with_states_the_choices_epsilon(tmp_path, in_process, four_runs, result_lost):
    """Also where its result is made again: then no smaller epsilon is written down."""
    result = sweep(asked(), out=tmp_path / "out", validation_public=True, choice=Choice(trials=TRIALS))
    best = tmp_path / "out" / "best"
    if result_lost:
        (best / "result.json").unlink()
    again = go_on(best)
    assert again["epsilon"] == pytest.approx(result["privacy"]["epsilon"], rel=1e-12)
    assert again["accountant"] == result["privacy"]["accountant"]
    assert again["chosen"] and "seconds" not in again
    assert json.loads((best / "result.json").read_text()) == again


def test_without_what_the_others_spent_the_kept_run_states_nothing(tmp_path, in_process, four_runs):
    sweep(asked(), out=tmp_path / "out", validation_public=True, choice=Choice(trials=TRIALS))
    (tmp_path / "out" / "best" / "selection.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"\[run-folder\]"):
        go_on(tmp_path / "out" / "best")


def test_beaten_runs_are_deleted_as_soon_as_they_are(tmp_path, in_process, four_runs, monkeypatch):
    seen = []
    keep = _choose._keep_the_best

    def spy(trials, score):
        keep(trials, score)
        seen.append(sum(trial.folder.exists() for trial in trials))

    monkeypatch.setattr(_choose, "_keep_the_best", spy)
    sweep(asked(), out=tmp_path / "out", validation_public=True, choice=Choice(trials=TRIALS))
    assert seen == [1, 1, 1, 1]


def test_a_stopped_choice_goes_on_with_the_runs_it_drew(tmp_path, in_process, four_runs, monkeypatch):
    stop = _choose._conclude
    monkeypatch.setattr(_choose, "_conclude", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sweep(asked(), out=tmp_path / "out", validation_public=True, choice=Choice(trials=TRIALS))
    monkeypatch.setattr(_choose, "_conclude", stop)
    monkeypatch.setattr(Choice, "draw", lambda self, n: pytest.fail("drew again"))
    result = sweep(asked(), out=tmp_path / "out", validation_public=True, choice=Choice(trials=TRIALS))
    assert in_process == [0, 1, 2, 3]
    again = sweep(asked(), out=tmp_path / "out", validation_public=True, choice=Choice(trials=TRIALS))
    assert again == json.loads(json.dumps(result))


def test_a_poisson_number_of_none_leaves_no_run_and_still_costs(tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(Choice, "draw", lambda self, n: [])
    trials = RandomTrials(distribution="poisson", mean=2)
    result = sweep(asked(), out=tmp_path / "out", validation_public=True, choice=Choice(trials=trials))
    assert result["best"] is None
    assert result["privacy"]["epsilon"] > 0


@pytest.mark.parametrize(
    ("grid", "more", "public", "says"),
    [
        (["lr=1,2"], [], False, "must be public"),
        (["epsilon=1,2"], [], True, "at one epsilon"),
        (["lr=1,2"], ["twin=true"], True, "leave out twin"),
        (["lr=1,2"], ["show_loss=true"], True, "leave out show_loss"),
        (["noise_seed=1,none"], [], True, "take their noise from a seed"),
        (["lr=1,2"], ["log=mlflow"], True, "Leave out log=mlflow"),
        (["lr=1,-2"], [], True, "lr: input should be greater than 0"),
    ],
)
def test_what_the_theorem_does_not_cover_is_refused(tmp_path, in_process, grid, more, public, says):
    with pytest.raises(ConfigError, match=says):
        sweep(
            asked(*grid, more=more),
            out=tmp_path / "out",
            validation_public=public,
            choice=Choice(trials=TRIALS),
        )
    assert in_process == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("choice", [Choice(trials=TRIALS), None])
@pytest.mark.parametrize("recipe", ["mnist", "vision-scratch", "text-classify"])
def test_a_choice_by_rows_that_were_held_out_is_refused(tmp_path, in_process, recipe, choice):
    """They are private, whoever says that they are public: no epsilon covers what is learned of them."""
    match recipe:
        case "mnist":
            more = ["validation=5000", "num_steps=2"]
        case "vision-scratch":
            for kind in ("dark", "light"):
                (tmp_path / "images" / kind).mkdir(parents=True)
            more = [f"data={tmp_path / 'images'}", "num_steps=2"]
        case _:
            (tmp_path / "rows.csv").write_text("text,label\n" + 50 * "a,no\nb,yes\n")
            more = [f"data={tmp_path / 'rows.csv'}", "labels=no,yes", "num_steps=2"]
    asked = read_sweep(recipe, ["epsilon=1", *more], ["lr=1,2"])
    with pytest.raises(ConfigError, match=r"held out of the private ones.*with public ones in test") as e:
        sweep(asked, out=tmp_path / "out", plain=False, validation_public=True, choice=choice)
    assert e.value.code == "sweep-choice" and in_process == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("test_data", [True, False])
def test_rows_of_a_table_are_public_only_in_a_file_of_their_own(tmp_path, test_data):
    for name in ("rows.csv", "public.csv"):
        (tmp_path / name).write_text("age,label\n" + 50 * "20,no\n30,yes\n")
    more = [f"test_data={tmp_path / 'public.csv'}"] if test_data else []
    settings = [f"data={tmp_path / 'rows.csv'}", "labels=no,yes", "columns=age=0..100", *more]
    with nullcontext() if test_data else pytest.raises(ConfigError, match="held out of the private ones"):
        refuse_private_scores(request("table", settings))


def test_the_candidates_are_drawn_uniformly():
    """10,000 runs over four candidates: each within 5 standard deviations of a quarter."""
    drawn = [
        c for _ in range(2500) for c in Choice(trials=RandomTrials(distribution="poisson", mean=4)).draw(4)
    ]
    for candidate in range(4):
        share = drawn.count(candidate) / len(drawn)
        assert abs(share - 0.25) < 5 * (0.25 * 0.75 / len(drawn)) ** 0.5
