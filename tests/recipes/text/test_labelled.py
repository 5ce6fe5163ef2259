"""Own files of labelled texts: what is read, held out, and refused; and the settings that suit their size."""

import json
from dataclasses import dataclass

import pytest

from reticent.errors import ConfigError, DataError
from reticent.recipes import describe, request
from reticent.recipes.text._labelled import LabelledFile, num_units, splits
from reticent.recipes.text._suggest import gaussian_mean, suggest

ROWS = [{"text": f"row {k}", "label": ("no", "yes")[k % 2]} for k in range(20)]


def written(path, rows=ROWS):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix in (".csv", ".tsv"):
        mark = "," if path.suffix == ".csv" else "\t"
        path.write_text("".join(mark.join(row) + "\n" for row in (rows[0], *(r.values() for r in rows))))
    elif not path.suffix:
        pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(str(path))
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(path, **changes):
    settings = {
        "path": str(path), "text_column": "text", "pair_column": None, "label_column": "label",
        "user_column": None, "labels": ("no", "yes"), "test_data": None, "test_split": None,
        "test_fraction": 0.2,
    }  # fmt: skip
    return splits("", LabelledFile(**settings | changes), report=print, progress=False)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv", "rows.parquet", "folder"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    found = read(written(tmp_path / name))
    assert (len(found.train), len(found.test)) == (16, 4)
    assert {*found.train.texts, *found.test.texts} == {row["text"] for row in ROWS}
    assert all(
        y == int(text.split()[1]) % 2 for text, y in zip(found.train.texts, found.train.y, strict=True)
    )
    assert found.about == {"name": "file", "scored": "held-out rows of the file, NOT private"}


def test_a_file_to_score_on_keeps_all_rows_for_training(tmp_path):
    other = written(tmp_path / "test.csv", ROWS[:5])
    path = written(tmp_path / "rows.jsonl")
    found = read(path, test_data=str(other))
    assert (len(found.train), len(found.test)) == (20, 5) and "scored" not in found.about


@pytest.fixture
def both_splits(tmp_path):
    """A folder of `datasets` with 20 rows to train on and 6 others to score on."""
    datasets = pytest.importorskip("datasets")
    public = [{"text": f"public {k}", "label": "no"} for k in range(6)]
    parts = {"train": ROWS, "validation": public}
    made = {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "both"))
    return tmp_path / "both"


def test_a_split_to_score_on_keeps_all_rows_of_the_other_for_training(both_splits):
    found = read(both_splits, test_split="validation")
    assert {*found.train.texts} == {row["text"] for row in ROWS} and len(found.train) == 20
    assert [*found.test.texts] == [f"public {k}" for k in range(6)] and found.about == {"name": "file"}
    with pytest.raises(DataError, match="has no split 'test'; it has: train, validation"):
        read(both_splits, test_split="test")


@pytest.mark.parametrize("name", ["rows.csv", "folder"])
def test_a_split_of_one_table_is_refused_not_the_private_rows_scored(tmp_path, name):
    with pytest.raises(DataError, match="is one table and has no splits") as caught:
        read(written(tmp_path / name), test_split="validation")
    assert caught.value.code == "data-missing"


@pytest.mark.parametrize(
    ("changes", "rows", "code"),
    [
        ({"labels": ("no", "never")}, ROWS, "data-labels"),
        ({"labels": None}, ROWS, "data-labels"),
        ({"text_column": "words"}, ROWS, "data-column"),
        ({"pair_column": "second"}, ROWS, "data-column"),
        ({"user_column": "who"}, ROWS, "data-column"),
        ({"user_column": "who"}, [{**row, "who": None} for row in ROWS], "user-column"),
        ({"user_column": "who"}, [{**row, "who": "one"} for row in ROWS], "data-empty"),
        ({}, [{"text": None, "label": "no"}], "data-format"),
        ({}, [*ROWS, {"text": "half \ud800", "label": "no"}], "data-format"),
        ({"pair_column": "label"}, [*ROWS, {"text": "whole", "label": "\udfff"}], "data-format"),
        ({}, ROWS[:1], "data-empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_refused_without_showing_a_row(tmp_path, changes, rows, code):
    with pytest.raises(DataError) as caught:
        read(written(tmp_path / "rows.jsonl", rows), **changes)
    assert caught.value.code == code
    assert "row 1" not in str(caught.value) and "yes" not in str(caught.value).split("must be")[0]


def test_numbers_are_labels_too(tmp_path):
    rows = [{"text": "a", "label": k / 2} for k in range(10)]
    found = read(written(tmp_path / "rows.jsonl", rows), labels=None)
    assert found.train.y.dtype == float and len(found.train) == 8
    for number in (float("nan"), 10**400, 1e300, "-inf"):
        rows[3]["label"] = number
        with pytest.raises(DataError, match="finite numbers"):
            read(written(tmp_path / "more.jsonl", rows), labels=None)


def test_known_data_have_a_public_size():
    assert num_units("imdb", None) == 25_000


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (3, 1e-5), (8, 1e-6)])
def test_the_mean_of_a_gaussian_spends_what_it_should(epsilon, delta):
    from math import erfc, exp, sqrt

    mu = gaussian_mean(epsilon, delta)
    least, most = epsilon / mu + mu / 2, epsilon / mu - mu / 2
    spent = (erfc(most / sqrt(2)) - exp(epsilon) * erfc(least / sqrt(2))) / 2
    assert spent == pytest.approx(delta, rel=1e-4)


@pytest.mark.parametrize(
    ("size", "steps", "batch"), [(67_349, 203, 1000), (104_743, 315, 2000), (363_846, 1092, 6000)]
)
def test_settings_are_near_the_published_ones_at_their_sizes(size, steps, batch):
    found = suggest(num_examples=size, epsilon=3.0, delta=1e-5, adaptation="full", model="m").values
    assert found["num_steps"] == pytest.approx(steps, rel=0.01)
    assert batch * 0.5 <= found["expected_batch_size"] <= batch * 2
    assert found["delta"] <= size**-1.1


def test_a_larger_budget_asks_for_a_larger_batch_and_a_small_file_is_not_outgrown():
    sizes = [
        suggest(num_examples=7_464, epsilon=e, delta=1e-5, adaptation="full", model="m").values[
            "expected_batch_size"
        ]
        for e in (0.5, 1, 2, 8)
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] <= 100_000 / 120 * 1.05
    tiny = suggest(num_examples=40, epsilon=8.0, delta=1e-5, adaptation="lora", model="m").values
    assert 1 <= tiny["expected_batch_size"] <= 40
    whole = suggest(num_examples=555, epsilon=300.0, delta=1e-5, adaptation="lora", model="m").values
    assert whole["expected_batch_size"] == 555, "two leading digits of it are 560"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A run as its authors had it, epsilon by PLD at the noise that their code solves for, and ours."""

    size: int
    num_steps: int
    expected_batch_size: int
    lr: float
    decay: str
    max_length: int | None
    delta: float | None = None  # N^-1.1
    epsilon: float = 3.0
    spent: dict[float, float]  # at their noise: for epsilon 3 (2 for images), then for 8
    noise: float  # ours, at their epsilon


PUBLISHED = {
    "sst-2-roberta": Published(
        size=67_349, num_steps=203, expected_batch_size=1000, lr=5e-4, decay="linear", max_length=256,
        spent={0.8332: 2.411, 0.5856: 6.681}, noise=0.7722,
    ),
    "qnli-roberta": Published(
        size=104_743, num_steps=315, expected_batch_size=2000, lr=5e-4, decay="linear", max_length=256,
        spent={0.9588: 2.576, 0.6599: 6.867}, noise=0.9000,
    ),
    "qqp-roberta": Published(
        size=363_846, num_steps=1092, expected_batch_size=6000, lr=5e-4, decay="linear", max_length=256,
        spent={1.1921: 2.759, 0.7636: 7.178}, noise=1.1363,
    ),
    "mnli-roberta": Published(
        size=392_702, num_steps=1179, expected_batch_size=6000, lr=5e-4, decay="linear", max_length=256,
        spent={1.1655: 2.756, 0.7532: 7.170}, noise=1.1111,
    ),
    "e2e-gpt2": Published(
        size=42_061, num_steps=411, expected_batch_size=1024, lr=2e-3, decay="none", max_length=100,
        delta=8e-6, spent={1.0893: 2.670, 0.7189: 6.971}, noise=1.0271,
    ),
    "dart-gpt2": Published(
        size=93_187, num_steps=1366, expected_batch_size=1024, lr=5e-4, decay="none", max_length=120,
        delta=1e-5, spent={0.9455: 2.656, 0.6570: 6.947}, noise=0.8956,
    ),
    "cifar10-vit-probe": Published(
        size=50_000, num_steps=500, expected_batch_size=1000, lr=2e-3, decay="none", max_length=None,
        epsilon=2.0, spent={1.2788: 1.804}, noise=1.2034,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_have_their_settings_and_spend_what_they_did(name):
    theirs = PUBLISHED[name]
    told = describe(request(name, []))
    config = told["config"]
    assert {key: config[key] for key in ("num_steps", "expected_batch_size", "lr", "max_norm")} == {
        "num_steps": theirs.num_steps,
        "expected_batch_size": theirs.expected_batch_size,
        "lr": theirs.lr,
        "max_norm": 0.1,
    }
    assert (config["lr_decay"], config["lr_warmup"], config.get("max_length")) == (
        theirs.decay, 0.0, theirs.max_length,
    )  # fmt: skip
    assert config["optimizer"] == "adam" and not config["weight_decay"] and not config["ema"]
    assert config["clipping"] == "flat" and config["sampler"] == "poisson"
    assert told["delta"] == pytest.approx(theirs.delta or theirs.size**-1.1, rel=1e-12)
    assert config["epsilon"] == theirs.epsilon >= told["epsilon"]
    assert told["noise_multiplier"] == pytest.approx(theirs.noise, abs=6e-5)
    for (noise, spent), asked in zip(theirs.spent.items(), (theirs.epsilon, 8.0), strict=False):
        found = describe(request(name, [f"epsilon={asked}", f"noise_multiplier={noise}"]))["epsilon"]
        assert found == pytest.approx(spent, rel=1e-3) and found <= asked


@pytest.mark.parametrize("which", ["test_data", "test_split", "linked", "e2e"])
def test_private_rows_are_not_scored_as_public_ones(tmp_path, which) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\ngood,yes\nbad,no\n")
    (tmp_path / "linked.csv").hardlink_to(path)
    values = {"test_split": "test_split=train", "linked": f"test_data={tmp_path / 'linked.csv'}"}
    settings = [f"data={path}", values.get(which, f"test_data={path}")]
    recipe = "e2e-gpt2" if which == "e2e" else "text-classify"
    with pytest.raises(ConfigError, match="private rows"):
        request(recipe, settings if which == "e2e" else [*settings, "labels=no,yes"])


@pytest.mark.parametrize(
    ("recipe", "more", "said"),
    [
        ("text-classify", ["labels=no,yes"], "is no file or folder"),
        ("table", ["labels=no,yes"], "is no file or folder"),
        ("text-generate", [], "There is no file or folder"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused_as_one_that_is_not_there(recipe, more, said) -> None:
    with pytest.raises((ConfigError, DataError), match=said) as caught:
        request(recipe, ["epsilon=8", f"data={'x' * 300}.csv", *more])
    assert caught.value.code in ("config", "data-missing")


def test_rows_to_score_on_under_such_a_name_are_refused(tmp_path) -> None:
    settings = [f"data={written(tmp_path / 'rows.csv')}", "labels=no,yes", f"test_data={'x' * 300}.csv"]
    with pytest.raises(DataError, match="There is no file or folder"):
        request("text-classify", ["epsilon=8", *settings])


@pytest.mark.parametrize(
    ("data", "test"),
    [
        ("", "test_data={}/train"),
        ("/train", "test_data={}"),
        ("", "test_split=./train"),
        ("", "test_split=copy"),
    ],
)
def test_the_training_split_of_the_folder_is_not_scored_as_public(both_splits, data, test) -> None:
    (both_splits / "copy").symlink_to(both_splits / "train")
    settings = [f"data={both_splits}{data}", "labels=no,yes", test.format(both_splits)]
    with pytest.raises(ConfigError, match="private rows"):
        request("text-classify", settings)


@pytest.mark.parametrize("name", ["sst-2-roberta", "e2e-gpt2"])
def test_a_published_run_of_rows_is_not_one_of_users(name) -> None:
    with pytest.raises(ConfigError, match="user_column would change what is counted"):
        request(name, ["user_column=who"])


def test_a_published_run_ignores_no_setting_of_its_recipe() -> None:
    for setting in ("max_examples=9", "test_fraction=0.5", "text_column=t", "only_class=c"):
        with pytest.raises(ConfigError, match="would be ignored"):
            request("e2e-gpt2", [setting])
