"""`benchmarks.scaling`: the model without privacy is the same model, whichever way it is spread."""

import pytest

from tests.dist import ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def test_every_way_is_measured_and_torchs_cut_of_the_model_is_the_whole_one(tmp_path):
    pytest.importorskip("transformers")
    found = ranks.results(
        "cut_by_torch+ddp+fsdp2+tp", tmp_path / "ranks", size=2, module="tests.benchmarks.scaled"
    )
    for of_rank in found:
        cut = of_rank["cut_by_torch"]
        assert cut["worst"] < 1e-5 and cut["number"] == cut["wanted"] + 1
        for way in ("ddp", "fsdp2", "tp"):
            one = of_rank[way]
            assert one["chunks"] == one["ranks"] == 2 and one["time_ratio"] > 0
            assert one["held_mib"]["private"] == one["held_mib"]["without"]
        assert of_rank["tp"]["held_mib"]["private"] < 0.6 * of_rank["ddp"]["held_mib"]["private"]
