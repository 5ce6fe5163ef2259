"""Every source for real: run with `-m network`. What cannot be reached is skipped, what differs fails."""

import numpy as np
import pytest

from reticent import data
from reticent.data._table import TABLE
from reticent.errors import DataError

SHAPES = {
    "fashion-mnist": ((60000, 28, 28), (10000, 28, 28), [6000] * 10),
    "mnist": ((60000, 28, 28), (10000, 28, 28), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
    "cifar10": ((50000, 32, 32, 3), (10000, 32, 32, 3), [5000] * 10),
    "adult": ((32561, 104), (16281, 104), [24720, 7841]),
}
ROUTES = [(name, next(iter(route.kinds))) for name in SHAPES for route in TABLE[name].routes]


@pytest.mark.network
@pytest.mark.parametrize(("name", "kind"), ROUTES)
def test_each_source_serves_the_whole_data_set(tmp_path, said, name, kind):
    try:
        loaded = data.load(name, cache_dir=tmp_path, sources=[kind], report=said.append)
    except DataError as error:
        if "[data-unreachable]" not in str(error):
            raise
        pytest.skip(str(error))
    train_shape, test_shape, counts = SHAPES[name]
    assert loaded.train.x.shape == train_shape
    assert loaded.test.x.shape == test_shape
    assert np.bincount(loaded.train.y).tolist() == counts
    assert loaded.source.startswith(kind)
