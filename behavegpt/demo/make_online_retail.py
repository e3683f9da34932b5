"""Make the demo's data from the UCI Online Retail log: online_retail.parquet and
product_families.csv.

    python make_online_retail.py SOURCE.parquet [--out FOLDER]

SOURCE holds one row per invoice line with the columns user_id, timestamp, location, event (stock
code), behavior (buy or cancel), invoice and description. Kept are purchases of products:
cancellations and the codes of `NOT_PRODUCTS` go.

A product's family is the head noun of its description. English puts it last ("t-light holder"),
this shop often first ("lunch bag red retrospot"), so family_rules.csv lists known nouns (whole
words of the description in lower case without punctuation, singular or plural, separated by |): the
first row with a match wins. Compounds therefore stand above the nouns they are made of. `OVERRIDES`
names the few products whose description no noun tells.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Postage, carriage, fees and manual corrections; then next day carriage, packing charge, high
# resolution image.
NOT_PRODUCTS = ("POST", "DOT", "C2", "M", "BANK CHARGES", "23444", "23574", "23702")
OTHER = "other"

OVERRIDES = {
    "16244B": "frame",  # MAXWELL 2 TONE BLUE 60 PAGE PHOTO A(lbum)
    "47348A": "hanging decoration",  # FUSCHIA VOILE POINTY SHOE DEC
    "47481": "frame",  # 50CM METAL STRING WITH 7 CLIPS
    "71101E": "christmas decoration",  # STANDING FAIRY POLE SUPPORT
    "79051A": "mug",  # SMOKEY GREY COLOUR D.O.F. GLASS
    "79144C": "hanging decoration",  # PAINTED LIGHTBULB RAINBOW DESIGN
    "79151B": "lamp",  # SILICON CUBE 25W, BLUE
    "79403": "light holder",  # FROSTED WHITE BASE
    "79406": "light holder",  # FROSTED WHITE BASE
    "84388": "cutlery and utensil",  # WISE MAN STAR SHAPE EGG PAN
}


def read_rules(path: Path) -> list[tuple[str, re.Pattern[str]]]:
    """family_rules.csv as (family, pattern), in order."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            (row["family"], re.compile(rf"\b(?:{row['nouns']})(?:s|es)?\b"))
            for row in csv.DictReader(file)
        ]


def family(product: str, description: str, rules: list[tuple[str, re.Pattern[str]]]) -> str:
    """The family of one product; `OTHER` when no rule matches."""
    if product in OVERRIDES:
        return OVERRIDES[product]
    # apostrophes go without a gap: CHILDREN'S is one word
    text = re.sub(r"[^a-z0-9]+", " ", description.lower().replace("'", "")).strip()
    return next((name for name, pattern in rules if pattern.search(text)), OTHER)


def purchases(source: Path) -> pa.Table:
    """Purchased products in the order of user, time, invoice and line of the invoice, with that
    order as `line`."""
    columns = ["user_id", "timestamp", "location", "event", "behavior", "invoice", "description"]
    table = pq.read_table(source, columns=columns)

    # rows before sorting: lines of one invoice stand in the order of the log
    table = table.append_column("row", pa.array(np.arange(len(table))))

    product = pc.invert(
        pc.is_in(table["event"], value_set=pa.array(NOT_PRODUCTS, table["event"].type))
    )

    table = table.filter(pc.and_(pc.equal(table["behavior"], "buy"), product))
    table = table.sort_by(
        [(name, "ascending") for name in ("user_id", "timestamp", "invoice", "row")]
    )

    return table.append_column("line", pa.array(np.arange(len(table), dtype=np.int32)))


def families(table: pa.Table) -> pa.Table:
    """product, description, family of every product, by product code."""
    rules = read_rules(Path(__file__).parent / "family_rules.csv")
    products = table.group_by("event").aggregate([("description", "min")]).sort_by("event")
    codes = products["event"].to_pylist()

    # descriptions of a product differ between invoices: the first in the alphabet stands for it
    texts = [text.strip() for text in products["description_min"].to_pylist()]

    names = [family(code, text, rules) for code, text in zip(codes, texts, strict=True)]
    return pa.table({"product": codes, "description": texts, "family": names})


def events(table: pa.Table, products: pa.Table) -> pa.Table:
    """The demo's log: user_id, timestamp (UK time), location (country), event (product), family,
    line."""
    # codes -> rows of `products`
    index = pc.index_in(table["event"], value_set=products["product"].cast(table["event"].type))
    return pa.table(
        {
            "user_id": table["user_id"],
            "timestamp": table["timestamp"],
            "location": table["location"].cast(pa.string()),
            "event": table["event"].cast(pa.string()),
            "family": products["family"].take(index),
            "line": table["line"],
        }
    )


def write_events(table: pa.Table, path: Path) -> None:
    """As small as parquet gets: dictionaries for labels, differences for the sorted numbers, zstd
    over both."""
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=["location", "event", "family"],
        column_encoding=dict.fromkeys(("user_id", "timestamp", "line"), "DELTA_BINARY_PACKED"),
        store_schema=False,
    )


def main(argv: list[str] | None = None) -> None:
    """Write both files, each under a temporary name first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="the Online Retail log as parquet")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder to write to"
    )

    args = parser.parse_args(argv)
    lines = purchases(args.source)
    products = families(lines)
    part = args.out / ".part"

    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(products.column_names)
        writer.writerows(zip(*products.to_pydict().values(), strict=True))

    os.replace(part, args.out / "product_families.csv")
    write_events(events(lines, products), part)
    os.replace(part, args.out / "online_retail.parquet")


if __name__ == "__main__":
    main()
