"""Public logs that users bring: how each download looks, what becomes of it, its terms and the
paper to cite.

None of these data sets comes with the package. `converters.convert` does what this table says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from behavegpt.data.schema import EventSchema


# a table and no classes: a new log is an entry that a reader checks against its description
@dataclass(frozen=True)
class Converter:
    """One public data set. `select`: output column -> SQL over `columns`, which are read as text,
    and `line`."""

    about: str  # format, terms, citation
    file: str  # name inside the download
    columns: tuple[str, ...]  # of the file, in order
    select: dict[str, str]
    schema: EventSchema
    header: bool = False
    separators: str = "\t"  # the first of them that the first line holds
    encoding: str = "utf-8"
    where: str = "true"
    # file beside it (label, category) -> behavior, and the label's column
    categories: tuple[str, str] | None = None


def _schema(
    tz: str, behavior: bool = False, location: bool = True, order: bool = True, **rules: Any
) -> EventSchema:
    return EventSchema(
        user="user_id",
        time="timestamp",
        event="event",
        location="location" if location else None,
        behavior="behavior" if behavior else None,
        order="line" if order else None,
        tz=tz,
        **rules,
    )


CONVERTERS = {
    # terms and citation stand in the error that a wrong file gets: who has the data must know them
    "tsinghua_app": Converter(
        about="Tsinghua App Usage, App_usage_trace.txt: user, time yyyymmddhhmmss (Shanghai), base "
        "station, app, traffic; separated by spaces or tabs, no header. App2Category.txt (app, "
        "category) in the same folder gives the behavior. For research; cite Yu et al., Smartphone "
        "App Usage Prediction Using Points of Interest, IMWUT 1(4), 2018.",
        file="App_[uU]sage_[tT]race.txt",
        columns=("user", "time", "base_station", "app", "traffic"),
        # mirrors of the file differ in it
        separators="\t ",
        select={
            "user_id": '"user"',
            "timestamp": "try_strptime(time, '%Y%m%d%H%M%S')",
            "location": "base_station",
            "event": "app",
            "line": "line",
        },
        schema=_schema("Asia/Shanghai"),
        categories=("App2Category.txt", "app"),
    ),
    "lsapp": Converter(
        about="LSApp, lsapp.tsv (unpack lsapp.tsv.gz, a tar archive): user id, session id, "
        "timestamp (local), app name, event type; header. Kept are the rows `Opened`. Public on "
        "GitHub; cite Aliannejadi et al., Context-aware Target Apps Selection and Recommendation, "
        "TOIS 2021.",
        file="lsapp.tsv",
        columns=("user_id", "session_id", "timestamp", "app_name", "event_type"),
        header=True,
        select={
            "user_id": "user_id",
            "timestamp": "try_cast(timestamp as timestamp)",
            "event": "app_name",
            "line": "line",
        },
        # the others are the end of a use, or what happens within one
        where="event_type = 'Opened'",
        # local times without a zone: taken as they are, hours and weekdays are right
        schema=_schema("UTC", location=False),
    ),
    "foursquare_tsmc": Converter(
        about="Foursquare TSMC2014, dataset_TSMC2014_NYC.txt or _TKY.txt: user, venue, category "
        "id, category name, latitude, longitude, offset from UTC in minutes, UTC time; tabs, "
        "latin-1, no header. Times become local, the event is the category's name, the location "
        "the venue. For research; cite Yang et al., Modeling User Activity Preference by "
        "Leveraging User Spatial Temporal Characteristics in LBSNs, IEEE TSMC Systems 45(1), 2015.",
        file="dataset_TSMC2014_*.txt",
        columns=(
            "user",
            "venue",
            "category_id",
            "category",
            "latitude",
            "longitude",
            "offset_minutes",
            "utc_time",
        ),
        # names of categories have accents: Café
        encoding="latin-1",
        select={
            "user_id": '"user"',
            "timestamp": "try_strptime(utc_time, '%a %b %d %H:%M:%S +0000 %Y')"
            # each event has its own offset, so the clock of the place is known
            " + to_minutes(try_cast(offset_minutes as integer))",
            "location": "venue",
            "event": "category",
            "line": "line",
        },
        schema=_schema("UTC"),
    ),
    "gowalla": Converter(
        about="Gowalla, loc-gowalla_totalCheckins.txt[.gz]: user, check-in time (ISO, Z), "
        "latitude, longitude, location id; tabs, no header, newest first. The event is the "
        "location id, the location a cell of 0.01 degrees. SNAP, for research; cite Cho, Myers, "
        "Leskovec, Friendship and Mobility, KDD 2011.",
        file="*otalCheckins.txt*",
        columns=("user", "time", "latitude", "longitude", "spot"),
        select={
            "user_id": '"user"',
            "timestamp": "try_strptime(time, '%Y-%m-%dT%H:%M:%SZ')",
            "location": (
                # about a kilometer: a venue itself is the event
                "format('{:.2f},{:.2f}', try_cast(latitude as double), try_cast(longitude as "
                "double))"
            ),
            "event": "spot",
            # newest first in the file: order counts backwards
            "line": "-line",
        },
        schema=_schema("UTC"),
    ),
    "retailrocket": Converter(
        about="RetailRocket, events.csv: timestamp (ms), visitorid, event (view, addtocart, "
        "transaction), itemid, transactionid; header. The event is action:item, the behavior the "
        "action. CC BY-NC-SA 4.0; cite Zykov, Noskov, Anokhin, Retailrocket recommender system "
        "dataset, Kaggle, 2022.",
        file="events.csv",
        columns=("timestamp", "visitorid", "event", "itemid", "transactionid"),
        header=True,
        separators=",",
        select={
            "user_id": "visitorid",
            "timestamp": "make_timestamp(try_cast(timestamp as bigint) * 1000)",
            "event": "event || ':' || itemid",
            "behavior": "event",
            "item": "itemid",
        },
        # epoch seconds are instants; days and hours are those of China
        # predicted is the action alone: of items there are 235,000, too many for classes
        schema=_schema("UTC", behavior=True, location=False, order=False),
    ),
    "taobao": Converter(
        about="Taobao User Behavior, UserBehavior.csv: user, item, category, behavior (pv, buy, "
        "cart, fav), epoch seconds; no header. The event is behavior:category; the item is kept "
        "beside it. Some times are years off. For research, see Tianchi; cite Zhu et al., Learning "
        "Tree-based Deep Model for Recommender Systems, KDD 2018.",
        file="UserBehavior.csv*",
        columns=("user", "item", "category", "behavior", "time"),
        separators=",",
        select={
            "user_id": '"user"',
            "timestamp": "make_timestamp(try_cast(time as bigint) * 1000000)",
            # of items there are four million, too many for a vocabulary
            "event": "behavior || ':' || category",
            "behavior": "behavior",
            "item": "item",
        },
        schema=_schema(
            "Asia/Shanghai", behavior=True, location=False, order=False, naive_time="utc"
        ),
    ),
    "recsys2025": Converter(
        about="RecSys Challenge 2025, the folder with product_buy, add_to_cart, remove_from_cart, "
        "page_visit and search_query (parquet), or its `input` folder after the split; "
        "product_properties.parquet beside them or one folder above. The event is kind:category if "
        "there are properties, else kind:sku, and the bare kind for visits and searches. The "
        "behavior is the event, for visits page_visit:url. `item` is the sku or url; `code_NN` are "
        "the codes of a query or of a product's name. See the challenge's terms; cite the RecSys "
        "Challenge 2025 (Synerise).",
        file="product_buy.parquet",
        columns=("client_id", "timestamp", "kind", "sku", "url", "category", "price"),
        select={
            "user_id": "client_id",
            "timestamp": "try_cast(timestamp as timestamp)",
            "event": "concat_ws(':', kind, coalesce(category, sku))",
            # coalesce: properties are optional, and visits have a url alone
            "behavior": "concat_ws(':', kind, coalesce(category, sku, url))",
            "kind": "kind",
            "item": "coalesce(sku, url)",
            "sku": "sku",
            "url": "url",
            "category": "category",
            "price": "price",
        },
        schema=_schema("UTC", behavior=True, location=False, order=False, extra=("item", "price")),
    ),
}
