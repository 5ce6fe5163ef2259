"""Joining the process group: how long ranks wait for each other."""

import pytest

from reticent.dist import joined
from reticent.errors import ConfigError


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "1e9", "ten", ""])
def test_a_time_that_no_rank_could_wait_is_refused(monkeypatch, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RETICENT_RANK_TIMEOUT", said)
    with pytest.raises(ConfigError, match="seconds") as caught, joined(parallel="ddp"):
        pass
    assert caught.value.code == "rank-timeout"
