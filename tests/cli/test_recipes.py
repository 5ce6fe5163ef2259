"""`reticent recipes`."""

import json

from click.testing import CliRunner

from reticent.cli import main


def test_every_recipe_is_listed_with_a_line_and_its_settings():
    shown = CliRunner().invoke(main, ["recipes", "--json"])
    assert shown.exit_code == 0
    listed = json.loads(shown.stdout)
    assert {"digits", "fashion-mnist", "cifar10", "vision-scratch", "vision-finetune"} <= listed.keys()
    assert all(one["summary"] and "epsilon" in one["settings"] for one in listed.values())
    assert "augmult" in listed["cifar10"]["settings"]
    lines = CliRunner().invoke(main, ["recipes"]).stdout.splitlines()
    assert len(lines) == len(listed)
