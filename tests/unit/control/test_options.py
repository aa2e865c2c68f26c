"""What control reads from a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpo_mp.config.blob import to_blob
from tpo_mp.config.load import load
from tpo_mp.control.options import read_options
from tpo_mp.errors import TpoError


def test_the_configured_caps_reach_the_store(tmp_path: Path) -> None:
    """Each setting of [store] lands in its place."""
    path = tmp_path / "tpo.toml"
    path.write_text(
        '[store]\ndurability = "always"\nsegment_bytes = 2097152\nrecords_bytes = 3145728\n'
        "records_age_s = 61\ndead_letters = 5\ndead_letter_bytes = 4194304\n"
        "dead_letter_age_s = 62\nopen_calls_bytes = 1048577\nresults = 6\nresult_age_s = 63\n"
        "[pipeline.edges]\ninference_to_post = 9\n"
    )
    options = read_options(to_blob(load(path, {}, {})))
    assert options.open_copy_bytes == 1048577
    assert (options.places["rag"], options.places["inference"]) == (512, 9)
    shelf = options.shelf
    assert shelf.durability == "always"
    assert (shelf.calls.segment_bytes, shelf.calls.total_bytes, shelf.calls.age_s) == (
        2097152, 3145728, 61,
    )  # fmt: skip
    assert (shelf.letters.total_bytes, shelf.letters.age_s) == (4194304, 62)
    assert shelf.letter_caps.rows == 5
    assert (shelf.tables.rows, shelf.tables.age_s) == (6, 63)


def test_without_a_configuration_there_are_defaults() -> None:
    """Control can start before the first epoch is readable."""
    assert read_options(None).max_open_calls == 16_384


def test_folders_of_documents_are_read_where_the_stage_runs(tmp_path: Path) -> None:
    """And only there is the feature asked for its options."""
    path = tmp_path / "tpo.toml"
    path.write_text("")
    assert read_options(to_blob(load(path, {}, {}))).rag is None
    path.write_text('[[stages.rag.folders]]\nname = "x"\npath = "/"\ntenant = "t"\n')
    found = read_options(to_blob(load(path, {}, {}))).rag
    assert found is not None
    (folder,) = found.folders
    assert (folder.name, folder.path, folder.tenant) == ("x", "/", "t")


def test_a_foreign_blob_is_refused() -> None:
    """With an error that names the reason."""
    with pytest.raises((TpoError, ValueError)):
        read_options(b"\x81\xa7version\x63")
