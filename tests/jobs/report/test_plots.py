"""Bars and curves that can be read, whatever the spread of the values."""

from __future__ import annotations

from datetime import timedelta

from jobs.report.plots import _wider_bins, curve_plot, trend_plot
from report_facts import DS, point

DAY = timedelta(days=1)


def test_few_bins_stay_and_many_are_joined() -> None:
    few, width = _wider_bins([{"bin": 30, "n_users": 2}, {"bin": 31, "n_users": 3}])
    assert (few, width) == ({0.61: 2, 0.63: 3}, 0.02)
    many, width = _wider_bins([{"bin": n, "n_users": 1} for n in range(1000)])  # norms up to 20
    assert len(many) <= 40
    assert sum(many.values()) == 1000
    assert width == 0.5  # 25 bins of 1/50


def test_a_training_of_one_epoch_has_no_curve() -> None:
    curves = {"loss": [(1, 3.0)], "validation": [(1, 0.1), (2, 0.2)]}
    assert [picture.alt for picture in curve_plot(curves)] == ["validation by epoch, at the end 0.2"]


def test_trends_show_only_what_was_measured() -> None:
    points = [
        point(DS - DAY, ndcg_candidate=0.2),
        point(DS, ndcg_candidate=0.3, ndcg_live=0.25, seconds={"ingest": 2.0}),
    ]
    assert [picture.alt for picture in trend_plot(points)] == [
        "users with an LTE over the last runs; at the end users 4",
        "interactions of the day over the last runs; at the end interactions 10",
        "unknown share of the window, % over the last runs; at the end share 25",
        "NDCG of the rankers over the last runs; at the end candidate 0.3, live 0.25",
        "seconds of the slowest tasks over the last runs; at the end ingest 2",
    ]
    assert trend_plot(points) == trend_plot(points)  # the same facts give the same page
