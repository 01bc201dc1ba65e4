from typing import Any

import pytest
import torch

from lte_models.ranker.examples import Past
from lte_models.ranker.retrieval import Retriever
from tiny_ranker import MODES, SHAPES, V, batch_of, context_of, model_of


@MODES
@SHAPES
@pytest.mark.parametrize("n_retrieved", [2, 4, V])
def test_the_candidates_hold_the_best_of_the_vocabulary(lte: str, shape: dict[str, Any], n_retrieved: int) -> None:
    model, batch, context = model_of(lte=lte, **shape), batch_of([[1, 5, 2]]), context_of(1)
    whole = model.scores(batch, context)[0].detach()
    order = sorted(range(V), key=lambda column: (-float(whole[column]), column))
    rows, scores = Retriever(model, n_retrieved).recommend(batch, context, 2)  # two of the six are the user's own
    assert rows.tolist() == [column + 1 for column in order[:2]]
    torch.testing.assert_close(scores, whole[order[:2]])


def test_an_own_item_is_a_candidate_however_far_down_the_towers_see_it() -> None:
    model, batch, context = model_of(history_features=True), batch_of([[1, 5, 2]]), context_of(1)
    retriever = Retriever(model, 1)
    queries = model.queries(batch, context, *retriever.embedded)
    assert set(batch.past.items.tolist()) <= set(retriever._candidates(queries, batch, context).tolist())


def test_a_stranger_is_served_without_a_past() -> None:
    model, batch, context = model_of(history_features=True), batch_of([[0]]), context_of(1, known=False)
    stranger = batch._replace(past=Past(*(part[:0] for part in batch.past)))
    rows, _ = Retriever(model, V).recommend(stranger, context, V)
    assert sorted(rows.tolist()) == list(range(1, V + 1))


def test_impossible_requests_are_named() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="n_retrieved: expected at least 1, got 0"):
        Retriever(model, 0)
    with pytest.raises(ValueError, match="one user at a time, not 2"):
        Retriever(model).recommend(batch_of([[1], [2]]), context_of(2), 1)
    with pytest.raises(ValueError, match="k = 7: between 1 and 6"):
        Retriever(model).recommend(batch_of([[1]]), context_of(1), 7)
