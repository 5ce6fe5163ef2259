"""Joining the process group: how long ranks wait for each other."""

import pytest

from reticent.dist import joined
from reticent.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("WORLD_SIZE", "abc"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", ""),
        ("LOCAL_RANK", "1.5"),
        ("LOCAL_RANK", "-1"),
    ],
)
def test_what_torchrun_would_not_set_is_refused(monkeypatch, name, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, said)
    with pytest.raises(ConfigError, match=f"{name} is '{said}'") as caught, joined(parallel="ddp"):
        pass
    assert caught.value.code == "no-process-group"


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "1e9", "ten", ""])
def test_a_time_that_no_rank_could_wait_is_refused(monkeypatch, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RETICENT_RANK_TIMEOUT", said)
    with pytest.raises(ConfigError, match="seconds") as caught, joined(parallel="ddp"):
        pass
    assert caught.value.code == "rank-timeout"
