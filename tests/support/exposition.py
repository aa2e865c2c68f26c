"""Lints a page of metrics as ``promtool check metrics`` does, and a little more strictly.

Source: the text exposition format 0.0.4, and the naming rules of the Prometheus documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from math import inf, isnan

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_UNITS = re.compile(r"_(ms|us|ns|milliseconds|microseconds|minutes|hours|mb|kb|kib|mib|percent)\b")
_RESERVED = {"counter": ("_total",), "gauge": (), "histogram": ("_bucket", "_sum", "_count")}


def problems(page: str) -> list[str]:
    """Everything that is wrong with a page."""
    return list(_page(page))


def _page(page: str) -> Iterator[str]:
    if not page.endswith("\n"):
        yield "the page does not end with a line end"
    declared = re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE)
    yield from (f"{name}: declared twice" for name in set(declared) if declared.count(name) > 1)
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    for family in text_string_to_metric_families(page):
        yield from _family(family)
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            if key in seen:
                yield f"{key}: twice"
            seen.add(key)


def _family(family: Metric) -> Iterator[str]:
    name = family.name
    if family.type not in _RESERVED:
        yield f"{name}: no type, or {family.type}"
        return
    if not family.documentation:
        yield f"{name}: no help"
    if not _NAME.fullmatch(name):
        yield f"{name}: not in snake case"
    if _UNITS.search(name):
        yield f"{name}: not a base unit"
    if family.type != "counter" and name.endswith(("_total", "_count", "_sum", "_bucket")):
        yield f"{name}: a {family.type} with the ending of another"
    for sample in family.samples:
        ending = sample.name.removeprefix(name)
        if ending not in (_RESERVED[family.type] or ("",)):
            yield f"{sample.name}: not a sample of a {family.type}"
        if isnan(sample.value) or (family.type != "gauge" and sample.value < 0):
            yield f"{sample.name}{sample.labels}: {sample.value}"
        if ("le" in sample.labels) != sample.name.endswith("_bucket"):
            yield f"{sample.name}: le is for buckets"
    if family.type == "histogram":
        yield from _histogram(name, family.samples)


def _histogram(name: str, samples: list[Sample]) -> Iterator[str]:
    """Bounds ascend to +Inf, counts never fall, and the last one is the count."""
    series: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    counts: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in samples:
        labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
        if sample.name.endswith("_bucket"):
            series.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_count"):
            counts[labels] = sample.value
    if set(series) != set(counts):
        yield f"{name}: buckets and counts are of other series"
    for labels, buckets in series.items():
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(buckets)):
            yield f"{name}{labels}: buckets do not ascend"
        if buckets[-1] != (inf, counts.get(labels)):
            yield f"{name}{labels}: the last bucket is not the count"
