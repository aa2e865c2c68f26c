"""The program names itself: version, age, features."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from tpo_mp import __version__, registry
from tpo_mp.observe import version


def test_age_is_that_of_the_newest_source_file(tmp_path: Path) -> None:
    """Wherever below the package it lies; other files do not count."""
    for name, at in (("a.py", 1000.0), ("room/b.py", 90_061.9), ("c.txt", 2e9)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    assert version.newest_file(tmp_path) == "1970-01-02T01:01:01Z"


def test_package_without_files_has_no_age(tmp_path: Path) -> None:
    """As one in a zip archive."""
    assert version.newest_file(tmp_path / "none") is None


def test_body_names_every_registered_feature() -> None:
    """By door and name, once each, in order; the time parses."""
    body = version.version()
    assert (body["name"], body["version"]) == ("tpo-mp", __version__)
    said = datetime.fromisoformat(body["build_timestamp"])
    assert said.utcoffset() is not None
    features = list(body["features"])
    assert features == sorted(set(features))
    assert {"backends/echo", "routes/weighted", "surfaces/ops_api"} <= set(features)
    backends = {name for name in features if name.startswith("backends/")}
    assert backends == {f"backends/{name}" for name in registry.names("backends")}
