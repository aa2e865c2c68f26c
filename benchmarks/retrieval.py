"""How well documents are found: recall on a small corpus, and what a lookup takes.

The corpus has a question for each of its documents, about half of them in other words than its own.
They are kept in a database of the store's own kind among documents of other tenants, and looked up
as the stage ``rag`` has it done; a question counts at ``k`` when its document is among the first
``k`` found.  Prints one row as JSON.

With ``--rerank`` a server of embeddings (OpenAI's API; its key in ``OPENAI_API_KEY``) puts what was
found into order as the stage has it done, and the row has the recall of that, too.  A simulator's
vectors mean nothing: with those the figures say nothing about an order by meaning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

from tpo_mp.pipeline.reranking import similarities
from tpo_mp.store import rag_table
from tpo_mp.store.rag_questions import RagChange
from tpo_mp.store.tables import TableCaps, Tables

CORPUS = Path(__file__).resolve().parent / "corpus" / "retrieval.json"
OTHER_TENANTS = 20
CANDIDATES = 12
"""What the stage looks up for an order by meaning, unless it is told otherwise."""
_CAPS = {"most_documents": 10_000, "most_bytes": 1 << 30}


Embed = Callable[[list[str]], bytes]
"""The reply of a server of embeddings to some texts."""


def measure(secs: float, embed: Embed | None = None) -> dict[str, float]:
    """Look every question up, again and again for ``secs``; with ``embed`` in its order, too."""
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
        ordered = [_rank(tables, one, embed) for one in corpus] if embed is not None else []
        tables.close()
    row = {"questions": len(corpus), **_recall(ranks), "lookup_us": spent / lookups * 1e6}
    if ordered:
        row |= {f"{name}_reranked": value for name, value in _recall(ordered).items()}
    return row


def _recall(ranks: list[int]) -> dict[str, float]:
    return {
        "recall_at_1": sum(rank == 1 for rank in ranks) / len(ranks),
        "recall_at_4": sum(0 < rank <= 4 for rank in ranks) / len(ranks),
        "mean_reciprocal_rank": sum(1 / rank for rank in ranks if rank) / len(ranks),
    }


def _rank(tables: Tables, one: dict[str, str], embed: Embed | None = None) -> int:
    """The place at which a question's document is found, from 1; 0: it is not."""
    question = one["question"]
    hits = rag_table.search(tables, "", question, CANDIDATES) or []
    if embed is not None and len(hits) > 1:
        body = embed([question, *(hit.text for hit in hits)])
        near = asyncio.run(similarities(body, len(hits)))
        order = sorted(range(len(hits)), key=lambda n: -near[n])
        hits = [hits[n] for n in order]
    found = [hit.id for hit in hits]
    return found.index(one["id"]) + 1 if one["id"] in found else 0


def server_of(url: str, model: str) -> Embed:
    """Ask a server of embeddings, whose address ends in its version (``https://…/v1``)."""
    headers = {"content-type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["authorization"] = f"Bearer {key}"

    def embed(texts: list[str]) -> bytes:
        asked = {"model": model, "input": texts, "encoding_format": "base64"}
        request = Request(f"{url.rstrip('/')}/embeddings", json.dumps(asked).encode(), headers)
        with urlopen(request, timeout=60) as reply:
            body: bytes = reply.read()
        return body

    return embed


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secs", type=float, default=1.0)
    parser.add_argument("--rerank", metavar="URL", help="a server of embeddings")
    parser.add_argument("--model", default="text-embedding-3-small")
    given = parser.parse_args()
    embed = server_of(given.rerank, given.model) if given.rerank else None
    print(json.dumps(measure(given.secs, embed)))


if __name__ == "__main__":
    main()
