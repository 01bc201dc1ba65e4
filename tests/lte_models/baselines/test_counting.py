import numpy as np
import torch

from lte_models.baselines.counting import decayed_counts, frequency, last_basket
from lte_models.ranker.examples import Past
from tiny_past import past_of_rows

PAST = past_of_rows([(0, 1, 2, 1, 3.5), (0, 3, 0, 4, 90.0), (0, 2, 1, 0, 4.0), (1, 2, 0, 1, 70.2)])


def _spread(past: Past, values: torch.Tensor) -> list[list[float]]:
    found = np.zeros((3, 3))
    found[past.user.numpy(), past.items.numpy() - 1] = values.numpy()
    return found.tolist()


def test_frequency_counts_one_window_or_both() -> None:
    assert _spread(PAST, frequency(PAST, short=True)) == [[2, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert _spread(PAST, frequency(PAST, short=False)) == [[3, 1, 4], [0, 1, 0], [0, 0, 0]]


def test_last_basket_is_the_latest_utc_day_with_its_midnight() -> None:
    # 3.5 and exactly 4.0 days before the anchor are the same UTC day
    assert _spread(PAST, last_basket(PAST, 3)) == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_decayed_counts_by_hand() -> None:
    # user 0: item 1 taken twice, worth .5 + .25; item 2 once, long ago, worth .125. Plain counts add .1 each time.
    past = past_of_rows([(0, 1, 2, 0, 30.0), (0, 2, 0, 1, 90.0)])
    past = past._replace(w_short=torch.tensor([0.75, 0.0]), w_long=torch.tensor([0.0, 0.125]))
    torch.testing.assert_close(decayed_counts(past, flat_share=0.1), torch.tensor([0.95, 0.225]))
