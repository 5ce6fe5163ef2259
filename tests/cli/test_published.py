"""Dry runs of the published image recipes: what they say, without data and in little time."""

import json
import time

import pytest
from click.testing import CliRunner

from reticent.cli import main
from reticent.recipes import recipes
from reticent.recipes.vision import published
from reticent.recipes.vision._recipe import VisionRecipe

PUBLISHED = sorted(recipe.name for recipe in vars(published).values() if isinstance(recipe, VisionRecipe))


def test_every_published_recipe_is_known_by_its_name():
    assert len(PUBLISHED) >= 9
    assert all(recipes()[name].name == name for name in PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_dry_run_of_a_published_recipe_says_what_it_spends_and_takes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    done = CliRunner().invoke(main, ["train", name, "--dry-run", "--json"])
    seconds = time.process_time() - began
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["recipe"] == name and shown["private"] is True
    assert shown["num_steps"] == shown["config"]["num_steps"] > 0
    assert shown["noise_multiplier"] > 0
    assert shown["config"]["noise_multiplier"] in (None, shown["noise_multiplier"])
    by_accountant = shown["epsilon_rdp"], shown["epsilon_pld"]
    assert 0 < min(by_accountant) == shown["epsilon"] <= shown["config"]["epsilon"]
    assert max(by_accountant) < 2 * min(by_accountant)  # both are of this run
    assert shown["operations"] > 0 and shown["device_hours"] > 0 and shown["device_hours_assume"]
    assert list(tmp_path.iterdir()) == []
    assert seconds < 30  # of processor time; a laptop takes a few
