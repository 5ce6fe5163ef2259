"""The models of the embedded digits."""

import pytest
import torch

from reticent.clipping import FlatClipping
from reticent.recipes import recipes, request, run
from reticent.recipes._memory import clipping_costs


def test_convolutions_learn_the_digits_too(tmp_path, seeded):
    settings = ["model=cnn", "num_steps=20", "max_norm=1.0", "optimizer=adam", "lr=0.02", "ema=0"]
    result = run(request("digits", settings), out=tmp_path / "run")
    assert result["test_accuracy"] > 0.5


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_what_clipping_costs_one_unit_says_nothing_of_how_many_there_were(model):
    config = request("digits", [f"model={model}"]).config
    network = recipes()["digits"].build(config)
    before = {name: p.clone() for name, p in network.state_dict().items()}

    def costs(num_rows):
        rows = recipes()["digits"].random_rows(config, num_rows)
        losses = recipes()["digits"].loss_per_example(config)
        return clipping_costs(
            network, lambda given: losses(network, given), rows, clipping=FlatClipping(max_norm=1.0)
        )

    two, seven = costs(2), costs(7)
    assert [cost["parameter"] for cost in two] == [name for name, _ in network.named_parameters()]
    for one, other in zip(two, seven, strict=True):
        assert one.pop("seconds") == pytest.approx(other.pop("seconds"))
        assert one == other
    assert all(torch.equal(p, before[name]) for name, p in network.state_dict().items())
