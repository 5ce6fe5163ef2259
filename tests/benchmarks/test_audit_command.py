"""The audit benchmark at its smallest: what it keeps, and that it goes on from there."""

import json

import torch

from benchmarks.audit import drawing, membership, reconstruction
from benchmarks.audit.__main__ import Kept, attach


def small_world():
    """Made-up pictures in the place of Fashion-MNIST."""
    generator = torch.Generator().manual_seed(0)

    def rows(num):
        return torch.rand((num, 784), generator=generator), torch.arange(num) % 10

    return reconstruction.World(known=rows(reconstruction.NUM_ROWS - 1), targets=rows(2), pool=rows(150))


def test_without_privacy_the_updates_give_every_target_away():
    where = small_world()
    found = reconstruction.from_updates(where, range(2), reconstruction.hidden)
    assert reconstruction.quality(where, found)["nearer_than_any_public"] == 2


def test_a_private_training_is_attacked_and_held_against_its_bound():
    found = reconstruction.private(small_world(), 1.0, "softmax")
    assert [guess["candidates"] for guess in found["guesses"]] == [10, 100]
    for guess in found["guesses"]:
        assert guess["prior"] < guess["bound"] < 3 * guess["prior"]  # epsilon = 1
    assert 0.99 < found["epsilon"] <= 1.0 and found["num_trainings"] == 2


def test_membership_is_measured_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(membership, "NUM_EXAMPLES", 40)
    found = membership.measure(None, num_shadows=4, num_targets=2)
    assert 0.0 <= found["attacks"]["lira_online"]["area_under_roc"] <= 1.0
    drawing.curves({"no privacy": found}, tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 1000


def test_what_was_measured_is_not_measured_again(tmp_path):
    first = Kept(tmp_path).get("one", lambda: {"figure": 1, "pictures": torch.zeros(2, 4)})
    again = Kept(tmp_path)
    assert again.get("one", lambda: {"figure": 2}) == first == {"figure": 1}
    assert again.pictures("one").shape == (2, 4)
    assert "environment" in json.loads((tmp_path / "audit.json").read_text())


def test_figures_are_named_in_a_run_s_audit_once(tmp_path):
    figures, run = tmp_path / "figures", tmp_path / "run"
    figures.mkdir()
    run.mkdir()
    (figures / "success.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (run / "audit.json").write_text(json.dumps({"format": 1, "pictures": [{"file": "other.png"}]}))
    attach(figures, run)
    attach(figures, run)
    named = [picture["file"] for picture in json.loads((run / "audit.json").read_text())["pictures"]]
    assert named == ["other.png", "audit-success.png"]
    assert (run / "audit-success.png").exists()
