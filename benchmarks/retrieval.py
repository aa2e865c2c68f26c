"""How well documents are found: recall on a small corpus, and what a lookup takes.

The corpus has a question for each of its documents, about half of them in other words than its own.
They are kept in a database of the store's own kind among documents of other tenants, and looked up
as the stage ``rag`` has it done; a question counts at ``k`` when its document is among the first
``k`` found.  Prints one row as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from tpo_mp.store import rag_table
from tpo_mp.store.rag_questions import RagChange
from tpo_mp.store.tables import TableCaps, Tables

CORPUS = Path(__file__).resolve().parent / "corpus" / "retrieval.json"
OTHER_TENANTS = 20
_CAPS = {"most_documents": 10_000, "most_bytes": 1 << 30}


def measure(secs: float) -> dict[str, float]:
    """Look every question up, again and again for ``secs``."""
    corpus = json.loads(CORPUS.read_text())
    with tempfile.TemporaryDirectory(prefix="tpo-retrieval-") as work:
        tables = Tables(Path(work) / "store.db", TableCaps())
        for tenant in ("", *(f"other-{n}" for n in range(OTHER_TENANTS))):
            for one in corpus:
                change = RagChange(tenant, one["id"], **_CAPS)
                rag_table.change(tables, change.key(), one["text"].encode())
        tables.commit()
        ranks = [_rank(tables, one) for one in corpus]
        until, lookups, began = time.monotonic() + secs, 0, time.process_time()
        while not lookups or time.monotonic() < until:
            rag_table.search(tables, "", corpus[lookups % len(corpus)]["question"], 4)
            lookups += 1
        spent = time.process_time() - began
        tables.close()
    return {
        "questions": len(corpus),
        "recall_at_1": sum(rank == 1 for rank in ranks) / len(ranks),
        "recall_at_4": sum(0 < rank <= 4 for rank in ranks) / len(ranks),
        "mean_reciprocal_rank": sum(1 / rank for rank in ranks if rank) / len(ranks),
        "lookup_us": spent / lookups * 1e6,
    }


def _rank(tables: Tables, one: dict[str, str]) -> int:
    """The place at which a question's document is found, from 1; 0: it is not."""
    found = [hit.id for hit in rag_table.search(tables, "", one["question"], 10)]
    return found.index(one["id"]) + 1 if one["id"] in found else 0


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secs", type=float, default=1.0)
    print(json.dumps(measure(parser.parse_args().secs)))


if __name__ == "__main__":
    main()
