"""Active clients and labels without leakage: from the input part alone, where the organizers' use the full history."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np

from behavegpt.challenge.files import ChallengeDirectory
from behavegpt.data.database import literal
from behavegpt.user_embeddings import write_array


def recompute(con: duckdb.DuckDBPyConnection, directory: ChallengeDirectory, work: Path) -> None:
    """Active clients, the most bought labels and their share of the purchases, from the input part alone.

    propensity_new_sku stays as given: products that are new in the windows cannot be known from the input.
    """
    bought = f"read_parquet({literal(work / 'input' / 'product_buy.parquet')}) bought"
    buyers = con.execute(f"SELECT DISTINCT client_id FROM {bought}").fetchnumpy()["client_id"]
    relevant = directory.relevant_clients
    write_array(work / "target" / "active_clients.npy", relevant[np.isin(relevant, buyers)])
    for column in ("category", "sku", "price"):
        path = work / "target" / f"propensity_{column}.npy"
        if not path.exists():
            continue
        size = len(np.load(path, allow_pickle=False))
        ranked = con.execute(f"""
            SELECT {column}::BIGINT AS label, count(*) / sum(count(*)) OVER () AS share
            FROM {bought} JOIN read_parquet({literal(directory.properties)}) product USING (sku)
            WHERE {column} IS NOT NULL GROUP BY label ORDER BY share DESC, label LIMIT {size}""").fetchnumpy()
        write_array(path, np.asarray(ranked["label"], np.int64))
        write_array(path.with_name(f"popularity_{path.name}"), np.asarray(ranked["share"], np.float64))
