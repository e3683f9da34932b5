"""Invented logs in the layouts that docs/recipes.md shows: a few hundred rows under the documented
column names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.datasets.repositories import Commit, repository

ROWS = 300
USERS = 12


@dataclass(frozen=True)
class Rows:
    """What all layouts tell: who, when, what and where; times are sorted, UTC."""

    rng: np.random.Generator
    user: np.ndarray  # (ROWS,) 0 to USERS - 1
    time: pd.DatetimeIndex

    @classmethod
    def drawn(cls) -> Rows:
        rng = np.random.default_rng(7)
        seconds = np.sort(rng.integers(0, 60 * 86_400, ROWS))
        start = pd.Timestamp("2024-03-01 06:00", tz="UTC")
        return cls(rng, rng.integers(0, USERS, ROWS), start + pd.to_timedelta(seconds, "s"))

    def pick(self, *labels: Any) -> list[Any]:
        return [labels[i] for i in self.rng.integers(0, len(labels), ROWS)]

    def names(self, form: str) -> list[str]:
        return [form.format(user) for user in self.user]

    def written(self, form: str) -> list[str]:
        return list(self.time.strftime(form))

    def numbers(self, form: str = "{}") -> list[str]:
        return [form.format(row) for row in range(ROWS)]

    @property
    def seconds(self) -> list[int]:
        return [int(time.timestamp()) for time in self.time]


def ga4(rows: Rows) -> list[dict[str, Any]]:
    pages = rows.pick("/", "/tea", "/cups", "/basket")
    columns = {
        "event_date": rows.written("%Y%m%d"),
        "event_timestamp": [str(s * 10**6) for s in rows.seconds],  # BigQuery's JSON quotes INT64
        "event_name": rows.pick("page_view", "scroll", "add_to_cart", "purchase"),
        "event_params": [
            [
                {"key": "page_location", "value": {"string_value": f"https://shop.example{page}"}},
                {"key": "ga_session_id", "value": {"int_value": str(session)}},
            ]
            for page, session in zip(pages, rows.seconds, strict=True)
        ],
        "user_id": rows.pick(None, None, None, "member-1"),
        "user_pseudo_id": rows.names("1234{}.1709"),
        "device": [{"category": device} for device in rows.pick("mobile", "desktop")],
        "geo": [{"country": "Spain", "city": city} for city in rows.pick("Madrid", "Bilbao")],
        "platform": rows.pick("WEB", "IOS"),
        "stream_id": ["7"] * ROWS,
    }
    return objects(columns)


def snowplow(rows: Rows) -> dict[str, Any]:
    return {
        "app_id": ["shop"] * ROWS,
        "platform": rows.pick("web", "mob"),
        "etl_tstamp": rows.written("%Y-%m-%d %H:%M:%S.900"),
        "collector_tstamp": rows.written("%Y-%m-%d %H:%M:%S.120"),
        "dvce_created_tstamp": rows.written("%Y-%m-%d %H:%M:%S.010"),
        "event": rows.pick("page_view", "page_ping", "struct"),
        "event_id": rows.numbers("c6ef3124-b53a-4b13-a233-{:012}"),
        "txn_id": [None] * ROWS,
        "name_tracker": ["sp"] * ROWS,
        "user_id": [None] * ROWS,
        "user_ipaddress": rows.names("203.0.113.{}"),
        "domain_userid": rows.names("bc2e92ec6c20{:02}"),
        "domain_sessionidx": rows.pick(1, 2, 3),
        "network_userid": rows.names("ecdff4d0-9175-{:04}"),
        "geo_country": rows.pick("GB", "ES"),
        "page_urlpath": rows.pick("/", "/tea", "/cups", "/basket"),
        "se_action": rows.pick(None, "add-to-basket"),
        "event_name": rows.pick("page_view", "page_ping", "add_to_basket"),
        "derived_tstamp": rows.written("%Y-%m-%d %H:%M:%S.110"),
    }


def mixpanel(rows: Rows) -> list[dict[str, Any]]:
    properties = {
        "time": rows.seconds,
        "distinct_id": rows.names("u-{}"),
        "$insert_id": rows.numbers("{:016x}"),
        "$browser": rows.pick("Chrome", "Safari"),
        "$city": rows.pick("Leeds", "York"),
        "mp_country_code": rows.pick("GB", "GB", "IE"),
    }
    return objects(
        {"event": rows.pick("Sign Up", "Play", "Pause"), "properties": objects(properties)}
    )


def segment(rows: Rows) -> dict[str, Any]:
    stamp = "%Y-%m-%d %H:%M:%S.123 UTC"
    return {
        "id": rows.numbers("ajs-{:08x}"),
        "received_at": rows.written(stamp),
        "user_id": rows.pick(None, "97980cfea0067"),
        "anonymous_id": rows.names("507f191e810c19729de8{:04}"),
        "context_ip": rows.names("203.0.113.{}"),
        "context_page_path": rows.pick("/", "/tea", "/cups"),
        "event": rows.pick("product_viewed", "product_added", "order_completed"),
        "event_text": rows.pick("Product Viewed", "Product Added", "Order Completed"),
        "original_timestamp": rows.written(stamp),
        "sent_at": rows.written(stamp),
        "timestamp": rows.written(stamp),
        "uuid_ts": rows.written(stamp),
    }


def amplitude(rows: Rows) -> list[dict[str, Any]]:
    stamp = "%Y-%m-%d %H:%M:%S.123000"
    columns = {
        "server_received_time": rows.written(stamp),
        "app": [230_001] * ROWS,
        "city": rows.pick("Lyon", "Nice"),
        "user_id": rows.pick(None, None, "ann@example.org"),
        "uuid": rows.numbers("8d2c9a3e-{:04x}-11ee"),
        "event_time": rows.written(stamp),
        "platform": rows.pick("iOS", "Android"),
        "amplitude_id": [902_393_117 + int(user) for user in rows.user],
        "user_properties": [{"plan": plan} for plan in rows.pick("free", "paid")],
        "$insert_id": rows.numbers("{:08x}"),
        "event_type": rows.pick("open", "search", "book", "cancel"),
        "event_id": list(range(ROWS)),
        "event_properties": [{"screen": screen} for screen in rows.pick("home", "map")],
        "device_id": rows.pick("A1-R", "A2-R", "A3-R"),
        "country": ["France"] * ROWS,
        "session_id": [seconds * 1000 for seconds in rows.seconds],
        "client_event_time": rows.written(stamp),
    }
    return objects(columns)


def plaid(rows: Rows) -> list[dict[str, Any]]:
    columns = {
        "account_id": rows.names("BxBXxLj1m4HMXBm9{:02}"),
        "amount": np.round(rows.rng.gamma(2, 20, ROWS), 2).tolist(),
        "authorized_date": rows.written("%Y-%m-%d"),
        "date": rows.written("%Y-%m-%d"),
        "datetime": rows.written("%Y-%m-%dT%H:%M:%SZ"),
        "iso_currency_code": ["GBP"] * ROWS,
        "location": [{"city": city, "country": "GB"} for city in rows.pick("Leeds", "York", None)],
        "merchant_name": rows.pick("Tesco", "Shell", "Costa", None),
        "name": rows.numbers("CARD PAYMENT {:05}"),
        "payment_channel": rows.pick("in store", "online"),
        "personal_finance_category": [
            {"primary": primary, "detailed": f"{primary}_OTHER"}
            for primary in rows.pick("FOOD_AND_DRINK", "TRANSPORTATION", "RENT_AND_UTILITIES")
        ],
        "transaction_id": rows.numbers("lPNjeW1nR6CDn5okmGQ6h{:04}"),
    }
    return objects(columns)


def camt(rows: Rows) -> dict[str, Any]:
    return {
        "Auftragskonto": rows.names("DE0212030000000020{:04}"),
        "Buchungstag": rows.written("%d.%m.%y"),
        "Valutadatum": rows.written("%d.%m.%y"),
        "Buchungstext": rows.pick("KARTENZAHLUNG", "LASTSCHRIFT", "GUTSCHRIFT ÜBERWEISUNG"),
        "Verwendungszweck": rows.numbers("Beleg {}"),
        "Beguenstigter/Zahlungspflichtiger": rows.pick("REWE", "Bäckerei Groß", "Stadtwerke"),
        "Kontonummer/IBAN": rows.pick("DE89370400440532013000", "DE75512108001245126199"),
        "BIC (SWIFT-Code)": rows.pick("COBADEFFXXX", "SOLADES1SWB"),
        "Betrag": [f"{x:.2f}".replace(".", ",") for x in rows.rng.normal(-20, 30, ROWS)],
        "Waehrung": ["EUR"] * ROWS,
        "Info": ["Umsatz gebucht"] * ROWS,
    }


def apps(rows: Rows) -> dict[str, Any]:
    return {
        "user_id": rows.user.tolist(),
        "session_id": rows.pick(*range(40)),
        "timestamp": rows.written("%Y-%m-%d %H:%M:%S"),
        "app_name": rows.pick("Google Chrome", "Messages", "Clock", "Camera"),
        "event_type": rows.pick("Opened", "Closed", "User Interaction"),
    }


def checkins(rows: Rows) -> dict[str, Any]:
    return {
        "userId": rows.user.tolist(),
        "venueId": rows.pick("49bbd6c0f964a520f4531fe3", "4a43c0aef964a520c6a61fe3"),
        "venueCategoryId": rows.pick("4bf58dd8d48988d127951735", "4bf58dd8d48988d1df941735"),
        "venueCategory": rows.pick("Bar", "Office", "Gym / Fitness Center", "Coffee Shop"),
        "latitude": np.round(rows.rng.normal(40.7, 0.1, ROWS), 6).tolist(),
        "longitude": np.round(rows.rng.normal(-74, 0.1, ROWS), 6).tolist(),
        "timezoneOffset": [-240] * ROWS,
        "utcTimestamp": rows.written("%a %b %d %H:%M:%S +0000 %Y"),
    }


def orders(rows: Rows) -> dict[str, Any]:
    first = [row % 3 != 2 for row in range(ROWS)]  # further items leave the order's fields empty

    def of_order(values: list[Any]) -> list[Any]:
        return [value if there else None for value, there in zip(values, first, strict=True)]

    stamp = rows.written("%Y-%m-%d %H:%M:%S +0100")
    return {
        "Name": rows.numbers("#{}"),
        "Email": rows.names("ann{}@example.org"),
        "Financial Status": of_order(["paid"] * ROWS),
        "Paid at": of_order(stamp),
        "Fulfillment Status": of_order(rows.pick("fulfilled", "unfulfilled")),
        "Currency": of_order(["GBP"] * ROWS),
        "Total": of_order(np.round(rows.rng.gamma(2, 20, ROWS), 2).tolist()),
        "Created at": stamp,
        "Lineitem quantity": rows.pick(1, 1, 2),
        "Lineitem name": rows.pick("Green tea - 100 g", "Cup", "Pot, large", "Sieve"),
        "Lineitem price": rows.pick("4.50", "12.00", "29.00"),
        "Lineitem sku": rows.pick("TEA-1", "CUP-1", "POT-2", "SIV-1"),
        "Shipping City": of_order(rows.pick("Leeds", "York")),
        "Vendor": rows.pick("Tea & Co", "Cups Ltd"),
    }


def shop(rows: Rows) -> dict[str, Any]:
    return {
        "event_time": rows.written("%Y-%m-%d %H:%M:%S UTC"),
        "event_type": rows.pick("view", "view", "cart", "purchase"),
        "product_id": rows.pick(1004856, 1004767, 1005115, 5100816),
        "category_id": rows.pick(2053013555631882655, 2053013553375346967),
        "category_code": rows.pick("electronics.smartphone", "computers.notebook", None),
        "brand": rows.pick("acme", "zenith", None),
        "price": rows.pick("489.07", "130.76"),
        "user_id": [520_088_904 + int(user) for user in rows.user],
        "user_session": rows.numbers("4d3b30da-a5e4-{:04x}"),
    }


def access_log(folder: Path) -> None:
    rows = Rows.drawn()
    paths = rows.pick("/", "/tea", "/cups", "/basket?item=1", "/style.css", "/search?q=%22tea%22")
    agents = rows.pick("Mozilla/5.0 (X11; Linux x86_64)", r"odd \"agent\" 1.0")
    lines = [
        f'203.0.113.{user} - - [{stamp}] "GET {path} HTTP/1.1" {status} 5123 "-" "{agent}"'
        for user, stamp, path, status, agent in zip(
            rows.user, rows.written("%d/%b/%Y:%H:%M:%S +0000"), paths,
            rows.pick(200, 200, 200, 304, 404), agents, strict=True,
        )
    ]  # fmt: skip
    (folder / "access.log").write_text("\n".join(lines) + "\n", encoding="utf-8")


def clones(folder: Path) -> None:
    rows = Rows.drawn()
    subjects = rows.pick("Fix the build", "Add tea", "Update cups", "Remove it")
    for number, name in enumerate(("numpy", "scipy")):
        commits = [
            Commit(subject, (f"src/{path}.py",), f"{seconds} +0100", f"Ann{user}", f"a{user}@x.org")
            for subject, path, seconds, user in list(
                zip(subjects, rows.pick("a", "b"), rows.seconds, rows.user, strict=True)
            )[number::2]
        ]
        repository(folder / "src" / name, commits)


def objects(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Columns as a list of objects."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _jsonl(path: Path, rows: Any) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _json(path: Path, rows: Any) -> None:
    path.write_text(json.dumps({"transactions": rows})[17:-1], encoding="utf-8")


def _csv(**options: Any) -> Callable[[Path, Any], None]:
    return lambda path, columns: pd.DataFrame(columns).to_csv(path, index=False, **options)


# file that the page's commands name -> the rows, and how they are written
TABLES: dict[str, tuple[Callable[[Rows], Any], Callable[[Path, Any], None]]] = {
    "ga4.jsonl": (ga4, _jsonl),
    "snowplow.csv": (snowplow, _csv()),
    "mixpanel.jsonl": (mixpanel, _jsonl),
    "tracks.csv": (segment, _csv()),
    "amplitude.json": (amplitude, _jsonl),
    "transactions.json": (plaid, _json),
    "umsaetze.csv": (camt, _csv(sep=";", encoding="latin-1", quoting=1)),
    "apps.tsv": (apps, _csv(sep="\t")),
    "checkins.csv": (checkins, _csv()),
    "orders.csv": (orders, _csv()),
    "shop.csv": (shop, _csv()),
}
FOLDERS: dict[str, Callable[[Path], None]] = {"access.log": access_log, "~/src/numpy": clones}


def write_log(file: str, folder: Path) -> Path:
    """Write the log that a command calls `file` into `folder`."""
    rows, write = TABLES[file]
    write(folder / file, rows(Rows.drawn()))
    return folder / file
