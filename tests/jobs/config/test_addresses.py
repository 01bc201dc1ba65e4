from datetime import date

import pytest

from jobs.config.addresses import is_url
from jobs.config.window import day_number, ranker_window


@pytest.mark.parametrize(
    "place", ["s3://bucket/lake", "hdfs://name:9000/x", "abfss://c@a.dfs.core.windows.net/x", "s3a://b"]
)
def test_addresses(place: str) -> None:
    assert is_url(place)


@pytest.mark.parametrize("place", ["/srv/lake", "../x", "/srv/s3://odd", "C:\\lake", "", "://x", "größe x/lake"])
def test_paths(place: str) -> None:
    assert not is_url(place)


def test_days_are_numbered_from_1970() -> None:
    assert [day_number(date(1970, 1, 1)), day_number(date(1969, 12, 31)), day_number(date(1971, 1, 1))] == [0, -1, 365]


def test_windows_of_the_ranker_are_the_papers() -> None:
    assert [ranker_window(is_lagged=True), ranker_window(is_lagged=False)] == ["365-60", "365-0"]
