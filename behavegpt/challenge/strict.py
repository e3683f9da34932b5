"""The strict split: active clients, labels and popularity from the input part alone.

The organizers' own use the full history, and so leak.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np

from behavegpt.arrays import write_array
from behavegpt.data.database import literal
from behavegpt.datasets.challenge_files import ChallengeDirectory


def recompute_targets(
    con: duckdb.DuckDBPyConnection, directory: ChallengeDirectory, work: Path
) -> None:
    """Write active clients, the most bought labels and their share of the purchases into a folder
    that holds the split.

    propensity_new_sku stays as given: products that are new in the windows cannot be known from the
    input.
    """
    # purchases before the windows
    bought = f"read_parquet({literal(work / 'input' / 'product_buy.parquet')}) bought"
    buyers = con.execute(f"SELECT DISTINCT client_id FROM {bought}").fetchnumpy()["client_id"]

    # in the order of relevant_clients.npy
    relevant = directory.relevant_clients
    write_array(work / "target" / "active_clients.npy", relevant[np.isin(relevant, buyers)])

    for column in ("category", "sku", "price"):
        path = work / "target" / f"propensity_{column}.npy"
        if not path.exists():
            continue

        # as many labels as the given ones have: scores depend on their number
        size = len(np.load(path, allow_pickle=False))
        # ties by label, so that the same input gives the same labels
        query = f"""
            SELECT {column}::BIGINT AS label, count(*) / sum(count(*)) OVER () AS share
            FROM {bought} JOIN read_parquet({literal(directory.properties)}) product USING (sku)
            WHERE {column} IS NOT NULL GROUP BY label ORDER BY share DESC, label LIMIT {size}"""

        ranked = con.execute(query).fetchnumpy()
        write_array(path, np.asarray(ranked["label"], np.int64))
        write_array(
            path.with_name(f"popularity_{path.name}"), np.asarray(ranked["share"], np.float64)
        )
