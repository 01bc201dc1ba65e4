"""Write a shop of 15 items and 40 users, each with a favourite category, as landing files of two days.

``python examples/small_shop.py FOLDER`` writes ``FOLDER/landing``; docs/tutorial.md has the next steps.
"""

import csv
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

TITLES = {
    "dress": ["Red floral dress", "Blue summer dress", "Black evening dress", "White linen dress", "Green wool dress"],
    "garden": ["Garden hose, 10 m", "Steel spade", "Tomato seeds", "Watering can", "Pruning shears"],
    "kitchen": ["Cast iron pan", "Bread knife", "Wooden spoon", "Coffee grinder", "Tea pot"],
}
ITEMS = [(f"{kind}-{n}", title, kind) for kind, titles in TITLES.items() for n, title in enumerate(titles)]
END = datetime(2026, 2, 1, tzinfo=UTC)  # the end of the last day


def write(path: Path, rows: list[tuple[str, ...]]) -> None:
    """Write one CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def events() -> dict[str, list[tuple[str, ...]]]:
    """Sixty events per user, spread over a year; landing day to rows. The last day has a landing day of its own."""
    landed: dict[str, list[tuple[str, ...]]] = {"2026-01-30": [], "2026-01-31": []}
    for user in range(40):
        favourite = random.choice(list(TITLES))
        liked = [item for item in ITEMS if item[2] == favourite]
        for _ in range(60):
            moment = END - timedelta(seconds=random.randrange(1, 365 * 86_400))
            item = random.choice(liked if random.random() < 0.8 else ITEMS)
            landing_day = "2026-01-31" if moment >= END - timedelta(days=1) else "2026-01-30"
            kind = random.choice(["click", "purchase"])
            landed[landing_day].append((f"u{user}", item[0], moment.isoformat(timespec="seconds"), kind))
    return landed


def main() -> None:
    """Write both kinds of landing files."""
    random.seed(7)
    landing = Path(sys.argv[1]) / "landing"
    write(landing / "items" / "ds=2025-01-01" / "catalogue.csv", [("item_id", "title", "category"), *ITEMS])
    for day, rows in events().items():
        header = ("user_id", "item_id", "event_ts", "interaction_type")
        write(landing / "interactions" / f"ds={day}" / "events.csv", [header, *rows])


if __name__ == "__main__":
    main()
