"""Writes an invented log of a shop's feed, to try things with: `python examples/make_shop.py FOLDER`.

Three tables as a team might have them: `views.csv.gz`, `products.csv` and `orders.csv`. Ids are texts, and times are those of
clocks in New York, without a zone, over a change to daylight saving time. Nobody's behaviour is in it: each row is drawn at
random.
"""

from __future__ import annotations

import csv
import gzip
import io
from argparse import ArgumentParser
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

USERS, PRODUCTS, DAYS, VIEWS_A_SESSION = 300, 400, 16, 14
CATEGORIES = ("shoes", "lamps", "tea", "books", "bicycles", "plants", "knives", "rugs")
START = datetime(2026, 3, 1, tzinfo=ZoneInfo("America/New_York"))


def main(folder: Path, users_count: int = USERS, days: int = DAYS) -> None:
    """Write the three files into `folder`."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    category = rng.integers(0, len(CATEGORIES), PRODUCTS)
    quality, price = rng.normal(0, 0.7, PRODUCTS), rng.lognormal(3, 0.8, PRODUCTS).round(2)
    brand = rng.integers(0, 30, PRODUCTS)
    taste = rng.normal(0, 1, (users_count, len(CATEGORIES)))
    products = [f"P-{CATEGORIES[c][:2]}{i:04d}" for i, c in enumerate(category)]
    users = [f"u{rng.integers(16**8):08x}" for _ in range(users_count)]

    views: list[tuple[object, ...]] = []
    orders: list[tuple[object, ...]] = []
    for user in range(users_count):
        for day in range(days):
            if rng.random() < 0.35:
                continue
            at = START.astimezone(UTC) + timedelta(days=day, seconds=int(rng.normal(20, 2) * 3600))
            mood = rng.normal(0, 1, len(CATEGORIES))  # of this session: what a phone notices first
            for _ in range(1 + rng.poisson(VIEWS_A_SESSION - 1)):
                product = int(PRODUCTS * rng.random() ** 1.5)
                wish = quality[product] + taste[user, category[product]] + 1.5 * mood[category[product]]
                seconds = float(np.exp(rng.normal(1.2 + 0.45 * wish, 0.6)))
                opened, liked = rng.random() < _sigmoid(wish - 1), rng.random() < _sigmoid(wish - 3)
                local = at.astimezone(START.tzinfo).strftime("%Y-%m-%d %H:%M:%S")
                views.append(
                    (
                        users[user],
                        products[product],
                        local,
                        f"{seconds:.2f}",
                        int(opened),
                        int(liked),
                        f"{abs(rng.normal()):.2f}",
                    )
                )
                if opened and rng.random() < _sigmoid(wish - 2):
                    ordered = (at + timedelta(seconds=seconds + 60)).astimezone(START.tzinfo).strftime("%Y-%m-%d %H:%M:%S")
                    orders.append((f"O{len(orders):06d}", users[user], products[product], ordered, price[product]))
                at += timedelta(seconds=seconds + 2)
    views.sort(key=lambda view: str(view[2]))
    _write(folder / "views.csv.gz", ("visitor", "product", "shown_at", "seconds", "opened", "liked", "scroll_speed"), views)
    _write(folder / "orders.csv", ("order_id", "visitor", "product", "ordered_at", "paid"), orders)
    rows = [
        (
            products[i],
            CATEGORIES[category[i]],
            f"brand {brand[i]}",
            f"{price[i]:.2f}",
            f"A {CATEGORIES[category[i]]} of brand {brand[i]}",
        )
        for i in range(PRODUCTS)
    ]
    _write(folder / "products.csv", ("product", "category", "brand", "price", "title"), rows)
    print(f"{len(views)} views, {len(orders)} orders, {PRODUCTS} products in {folder}")


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def _write(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


if __name__ == "__main__":
    parser = ArgumentParser(description="Write an invented log of a shop's feed.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("shop"))
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--days", type=int, default=DAYS)
    options = parser.parse_args()
    main(options.folder, options.users, options.days)
