"""Every form of data set gives the same rows."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from reticent.errors import DataError
from reticent.train._rows import fetch, leaves, num_rows

X = torch.arange(20.0).reshape(10, 2)
Y = torch.arange(10)


class MapStyle(Dataset):
    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return self.item(i)


FORMS = {
    "tensors": (X, Y),
    "list": [X, Y],
    "arrays": (X.numpy(), Y.numpy()),
    "mixed": (X, Y.numpy()),
    "dict": {"x": X, "y": Y.numpy()},
    "tensor-dataset": TensorDataset(X, Y),
    "map-style": MapStyle(lambda i: (X[i], int(Y[i]))),
    "map-style-dict": MapStyle(lambda i: {"x": X[i].numpy(), "y": int(Y[i])}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("indices", [[3], [1, 4, 9]])
def test_rows_are_those_asked_for(form, indices):
    x, y = leaves(fetch(FORMS[form], np.array(indices)))
    assert torch.equal(x, X[indices])
    assert torch.equal(y, Y[indices])
    assert num_rows(FORMS[form]) == 10


def test_a_single_tensor_or_array_is_a_data_set():
    assert torch.equal(fetch(X, np.array([2])), X[[2]])
    assert torch.equal(fetch(X.numpy(), np.array([2])), X[[2]])


@pytest.mark.parametrize("dataset", [iter([1, 2]), MapStyle(lambda i: "text"), MapStyle(lambda i: [[X[i]]])])
def test_what_gives_no_tensors_is_refused(dataset):
    with pytest.raises(DataError, match=r"\[data-rows\]"):
        fetch(dataset, np.array([0]))
