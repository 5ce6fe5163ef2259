"""The models of the embedded digits."""

from reticent.recipes import request, run


def test_convolutions_learn_the_digits_too(tmp_path):
    settings = ["model=cnn", "num_steps=20", "max_norm=1.0", "optimizer=adam", "lr=0.02", "ema=0"]
    result = run(request("digits", settings), out=tmp_path / "run")
    assert result["test_accuracy"] > 0.5
