"""The zoo holds what it says: honest cases are isolated and not trivial, planted ones really are coupled."""

import pytest
import torch

from tests.support import hf, oracle, zoo
from tests.support.case import Case
from tests.support.judge import LARGE_NORM

HONEST = (*zoo.EXACT, *zoo.EITHER, *zoo.GENERATED, *hf.EXACT, *hf.EITHER)
COUPLED = (*zoo.refused.COUPLED_MODELS, *zoo.refused.COUPLED_LOSSES)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning"),
]


def test_names_are_unique_and_there_are_enough() -> None:
    names = [case.name for case in (*zoo.EXACT, *zoo.EITHER, *zoo.GENERATED, *zoo.REFUSED)]
    assert len(set(names)) == len(names)
    assert len({case.name for case in (*hf.EXACT, *hf.EITHER)}) == len((*hf.EXACT, *hf.EITHER))
    assert len(zoo.EXACT) >= 200 and len(zoo.GENERATED) >= 25 and len(hf.EXACT) >= 30


@pytest.mark.parametrize("case", HONEST, ids=repr)
def test_every_trainable_parameter_gets_a_gradient_and_norms_differ(case: Case) -> None:
    problem = case.build(0, torch.float64)
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, LARGE_NORM)
    assert norms.isfinite().all() and 4 <= len(norms) <= 6
    assert norms.max() > 1.01 * norms.min()
    idle = {name for name, t in total.items() if not t.abs().max() > 1e-9 * norms.max()}
    assert idle == {name for name in total if case.idle and name.endswith(case.idle)}


@pytest.mark.parametrize("case", HONEST, ids=repr)
def test_an_honest_case_gives_each_example_its_own_loss(case: Case) -> None:
    problem = case.build(0, torch.float64)
    together = problem.losses(problem.batch)
    for row in range(problem.num_rows):
        alone = problem.losses(oracle.take_rows(problem.batch, slice(row, row + 1)))
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", COUPLED, ids=repr)
def test_a_coupled_case_changes_a_loss_when_some_row_leaves(case: Case) -> None:
    problem = case.build(0, torch.float64)
    together = problem.losses(problem.batch)
    moved = []
    for row in range(problem.num_rows):
        fewer = problem.losses(oracle.without_row(problem.batch, row))
        stayed = torch.cat([together[:row], together[row + 1 :]])
        moved.append(((stayed - fewer) / stayed).abs().max())
    assert max(moved) > 1e-4


@pytest.mark.parametrize("case", HONEST, ids=repr)
def test_the_float32_twin_holds_the_same_numbers(case: Case) -> None:
    wide, narrow = case.build(1, torch.float64), case.build(1, torch.float32)
    for (name, a), b in zip(wide.model.state_dict().items(), narrow.model.state_dict().values(), strict=True):
        assert torch.equal(a, b.to(a.dtype)), name
    assert wide.losses(wide.batch).dtype == torch.float64
    assert narrow.losses(narrow.batch).dtype == torch.float32
