"""The page: self-contained, true to the ledger, loud where nothing is promised."""

import itertools
import json
import math
import re
from html.parser import HTMLParser
from statistics import NormalDist

import pytest

from reticent.errors import ConfigError
from reticent.report import write_report
from reticent.report._page import round_up, rows
from reticent.report._plots import Series, accuracy_plot, epsilon_plot
from tests.report.runs import make_run

VOID = {"meta", "link", "br", "img", "use", "path", "stop", "rect", "col", "wbr"}


class Outline(HTMLParser):
    """Checks that elements nest, and collects text, ids and everything that could load something."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.ids, self.loads = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            if attributes.get(name):
                self.loads.append(attributes[name])

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def outline(page):
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def page_of(folder, **settings):
    return write_report(make_run(folder, **settings)).path.read_text(encoding="utf-8")


def words(page):
    return " ".join(" ".join(outline(page).text).split())


def test_the_page_lands_in_the_run_folder_and_leaves_no_other_file(tmp_path):
    folder = make_run(tmp_path / "run")
    before = {p.name for p in folder.iterdir()}
    written = write_report(folder)
    assert written.path == folder / "report.html"
    assert {p.name for p in folder.iterdir()} - before == {"report.html"}


def test_a_run_that_lost_nothing_does_not_speak_of_losses(tmp_path):
    told = words(write_report(make_run(tmp_path / "run")).path.read_text(encoding="utf-8"))
    assert "40 performed of 40 planned" in told and "lost in crashes" not in told


def test_a_twin_without_a_folder_is_shown_and_stages_are_rows(tmp_path):
    """As `last-layer` and `table` write them."""
    folder = make_run(tmp_path / "run", twin=False)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    result["twin"] = {"test_accuracy": 0.909, "seconds": 90.0, "time_ratio": 2.36}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    told = words(write_report(folder).path.read_text(encoding="utf-8"))
    assert "90.90 % non-private twin" in told
    assert "2.36 times the twin" in told and "for each update" not in told
    stages = [{"name": "centre", "noise": 6.5}, {"num_steps": 87}]
    assert rows({"stages": stages, "names": ["a", "b"]}) == (
        ("stages.centre.noise", "6.5"),
        ("stages.2.num_steps", "87"),
        ("names", "a, b"),
    )


def test_the_page_states_epsilon_and_what_gives_it_meaning(tmp_path):
    written = write_report(
        make_run(tmp_path / "run", lost=3, sampling_prob=4096 / 60_000, noise_multiplier=1.1)
    )
    told = words(written.path.read_text(encoding="utf-8"))
    report = written.statement.report
    for part in (
        f"Differentially private: ε = {round_up(report.epsilon)} at δ = 1e-05",
        "zero-out-one: replacing one training example by one that contributes nothing",
        "40 performed of 40 planned; 3 of the performed ones were lost in crashes",
        "one row of the training set",
        report.accountant,
        "poisson",
        "1.1",
        "0.068266667",
        "The number of training examples, 60,000: the plan names it.",
        "What is not protected",
        "non-private twin",
        "MIT",
        "optimizer.lr",
        written.run.ledger.head,
    ):
        assert part in told


def test_time_is_shown_only_where_it_does_not_tell_how_many_were_drawn(tmp_path):
    assert "2.36 times the twin, for each update" in words(page_of(tmp_path / "full"))
    drawn = words(page_of(tmp_path / "drawn", sampling_prob=0.5, num_steps=2, planned_steps=2))
    assert "212 s" not in drawn and "times the twin" not in drawn
    assert "the time that steps took, which this page therefore leaves out" in drawn


def test_hits_of_an_attacker_are_those_of_the_gaussian_never_below(tmp_path):
    told = words(page_of(tmp_path / "run", num_steps=40, noise_multiplier=10.0))
    table = told[told.index("an attacker finds at most") :]
    for alarms in (0.001, 0.01, 0.05, 0.1, 0.5):
        truth = 100 * NormalDist().cdf(NormalDist().inv_cdf(alarms) + math.sqrt(40) / 10)
        (shown,) = re.findall(rf"(?<![\d.]){100 * alarms:g} % (\d+\.\d) %", table)
        assert truth <= float(shown) < truth + 0.1 + 1e-9
    accuracy = 100 * NormalDist().cdf(math.sqrt(40) / 20)
    (shown,) = re.findall(r"is right at most (\d+\.\d) % of the time", told)
    assert accuracy <= float(shown) < accuracy + 0.1 + 1e-9


def test_a_run_whose_parts_disagree_says_so_at_the_top(tmp_path):
    folder = make_run(tmp_path / "run")
    sound = write_report(folder).path.read_text(encoding="utf-8")
    assert "Everything that could be checked when this page was made agrees" in words(sound)
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    about["plan"]["noise_multiplier"] = 11.0
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    page = write_report(folder).path.read_text(encoding="utf-8")
    assert page.index("The parts of this run do not agree") < page.index("<h2")


def test_a_run_on_users_speaks_of_users(tmp_path):
    folder = make_run(tmp_path / "run")
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    about["plan"]["unit"] = "user"
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    told = words(write_report(folder).path.read_text(encoding="utf-8"))
    for part in ("whether any one user was used", "The number of users, 60,000", "a certain user was used"):
        assert part in told
    assert "training example" not in told and "People who have several rows" not in told


def test_headings_go_down_one_by_one_and_tables_have_headers(tmp_path):
    page = page_of(tmp_path / "run")
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert "<th>" not in page
    assert re.findall(r"<(header|main|footer|nav)\b", page) == ["header", "main", "nav", "footer"]


def test_what_clipping_cost_is_a_table(tmp_path):
    folder = make_run(tmp_path / "run")
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    row = {"form": "Outer", "method": "gram", "others": ["keep"], "bytes": 2048.0}
    about["layers"] = [
        {**row, "parameter": "<b>", "seconds": 3e-6},
        {**row, "parameter": "c", "seconds": 1e-6},
    ]
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    told = words(write_report(folder).path.read_text(encoding="utf-8"))
    assert "<b> Outer gram of 2 75.0 % 2 KiB" in told


def test_add_or_remove_says_that_the_number_of_examples_is_not_public(tmp_path):
    told = words(page_of(tmp_path / "run", num_examples=None))
    assert "add-or-remove-one: adding or removing one training example" in told
    assert "Not the number of training examples" in told


@pytest.mark.parametrize(
    "settings", [{"reproducible": True}, {"noise_multiplier": 0.0}, {"private": False, "ledger": False}]
)
def test_a_run_without_guarantee_says_so_at_the_top_and_states_no_epsilon(tmp_path, settings):
    page = page_of(tmp_path / "run", **settings)
    told = words(page)
    assert page.index("NOT PRIVATE</strong>") < page.index("<h2")
    assert 'class="verdict bad"' in page
    assert "<title>NOT PRIVATE" in page
    assert "Differentially private: ε" not in told
    assert not re.search(r"ε = \d", told)
    assert 'data-plot="epsilon"' not in page


def test_the_page_loads_nothing(tmp_path):
    page = page_of(tmp_path / "run")
    assert all(target.startswith("#") for target in outline(page).loads)
    assert "<script" not in page
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_what_stands_in_a_run_cannot_become_markup(tmp_path):
    page = page_of(tmp_path / "run", recipe='<script>alert("x")</script>')
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_identifiers_are_unique_and_referenced_ones_exist(tmp_path):
    page = page_of(tmp_path / "run")
    ids = outline(page).ids
    assert len(ids) == len(set(ids))
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)
    assert used and {a or b for a, b in used} <= set(ids)


def test_plots_carry_a_title_and_a_description(tmp_path):
    page = page_of(tmp_path / "run")
    plots = re.findall(r'<svg role="img" aria-labelledby="([^"]+)"', page)
    assert plots == [f"{name}-title {name}-description" for name in ("epsilon", "attack", "accuracy")]
    assert "Epsilon rises from 0 to" in page
    assert "non-private twin ends at" in page


def test_light_dark_and_print_are_styled_with_the_same_variables(tmp_path):
    page = page_of(tmp_path / "run")
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    defined = set(re.findall(r"(--[a-z0-9-]+):", page))
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", page)) <= defined
    assert not re.search(r"#0[14]0[a-f0-9]0", page)  # no placeholder colour is left


def test_the_same_run_gives_the_same_page(tmp_path):
    folder = make_run(tmp_path / "run")
    first = write_report(folder).path.read_bytes()
    assert write_report(folder).path.read_bytes() == first


def test_a_run_without_metrics_has_a_page_without_curves(tmp_path):
    folder = make_run(tmp_path / "run", twin=False)
    (folder / "metrics.jsonl").unlink()
    page = write_report(folder).path.read_text(encoding="utf-8")
    assert 'data-plot="accuracy"' not in page
    assert 'data-plot="epsilon"' in page


def test_one_evaluation_is_a_number_and_no_curve(tmp_path):
    folder = make_run(tmp_path / "run", twin=False, ema=False)
    last = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[-1]
    (folder / "metrics.jsonl").write_text(last, encoding="utf-8")
    page = write_report(folder).path.read_text(encoding="utf-8")
    assert 'data-plot="accuracy"' not in page
    assert "85.41 %" in words(page)


def with_classes(folder, accuracies, *, names=None, areas=()):
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    result |= {"test_class_accuracy": accuracies, "test_auc_by_class": list(areas)}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    about["data"]["classes"] = names
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    return write_report(folder).path.read_text(encoding="utf-8")


def test_classes_are_shown_the_worst_first_with_their_areas(tmp_path):
    names = ["cat", "<b>dog</b> & $x$", "猫", "no rows"]
    page = with_classes(
        make_run(tmp_path / "run"), [0.75, 0.5, 1.0, None], names=names, areas=[0.9, None, 0.99, None]
    )
    told = words(page)
    assert (
        "The best known class, 猫, is right in 100.0 % of cases, the worst, <b>dog</b> & $x$, in 50.0 %"
        in told
    )
    assert "1 classes have no test rows" in told
    plain = " ".join(told.split())
    assert "<b>dog</b> & $x$ 50.00 % none cat 75.00 % 0.9000 猫 100.00 % 0.9900" in plain
    assert page.count('data-plot="classes"') == 1 and 'href="#classes"' in page
    assert "<b>dog" not in page


def test_many_classes_are_drawn_from_both_ends_and_listed_whole(tmp_path):
    page = with_classes(make_run(tmp_path / "run"), [k / 200 for k in range(200)])
    told = words(page)
    assert "the worst and the best, without 176 between them" in told
    assert told.count("class 100 ") == 1 and "class 0 0.00 %" in told and "class 199 99.50 %" in told


@pytest.mark.parametrize("accuracies", [[], [0.5], [None, 0.5]])
def test_a_run_of_fewer_than_two_classes_has_no_such_part(tmp_path, accuracies):
    page = with_classes(make_run(tmp_path / "run"), accuracies)
    assert "#classes" not in page and 'data-plot="classes"' not in page


def test_a_page_that_cannot_be_written_is_a_clear_error(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "report.html").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written .*\[report-not-writable\]"):
        write_report(folder)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (2.99962, "3"),
        (2.9981, "2.999"),
        (2.998, "2.998"),
        (0.00123411, "0.001235"),
        (12.3401, "12.35"),
        (123456.2, "123500"),
        (5.0, "5"),
        (9.9999, "10"),
        (math.inf, "∞"),
    ],
)
def test_epsilon_is_rounded_up_never_down(value, shown):
    assert round_up(value) == shown


@pytest.mark.parametrize("points", [((1, 0.5),), ((1, 0.1), (2, 0.2))])
def test_plots_of_a_point_or_two_draw_without_a_warning(points):
    assert "<svg" in epsilon_plot(points, delta=1e-5, last="0.5")
    assert "<svg" in accuracy_plot([Series(name="last weights", points=points)])


def test_settings_of_any_shape_are_shown(tmp_path):
    folder = make_run(tmp_path / "run")
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    about["config"] = {"layers": [1, 2], "deep": {"er": {"on": True, "none": None}}, "lr": 0.1, "empty": []}
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    told = words(write_report(folder).path.read_text(encoding="utf-8"))
    for part in ("layers 1, 2", "deep.er.on yes", "deep.er.none none", "lr 0.1", "empty none"):
        assert part in told
