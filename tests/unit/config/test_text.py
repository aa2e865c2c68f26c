"""Texts: what is no plain, bounded tree does not get past the parser."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpo_mp.config.text import UPLOAD_LIMIT_BYTES, Tree, parse, read_file
from tpo_mp.errors import ConfigError


def yaml(text: str) -> Tree:
    """Parse YAML."""
    return parse(text.encode(), name="c", yaml=True)


def toml(text: str) -> Tree:
    """Parse TOML."""
    return parse(text.encode(), name="c", yaml=False)


def test_same_tree_from_toml_and_yaml() -> None:
    """Both spellings of a file mean the same."""
    tree = {"server": {"port": 1, "host": "a"}, "backends": [{"name": "x"}]}
    assert toml('[server]\nport = 1\nhost = "a"\n[[backends]]\nname = "x"\n') == tree
    assert yaml("server: {port: 1, host: a}\nbackends:\n  - name: x\n") == tree


def test_empty_texts_are_empty_trees() -> None:
    """An empty file is a config without settings."""
    assert toml("") == yaml("") == yaml("# only a comment\n") == {}


def test_anchors_may_be_used() -> None:
    """Ordinary reuse is fine, and what is reused is a copy."""
    tree = yaml("x-base: &b {connect_s: 1}\na: *b\nb: {<<: *b, idle_s: 2}\nc: *b\n")
    assert tree == {
        "a": {"connect_s": 1},
        "b": {"connect_s": 1, "idle_s": 2},
        "c": {"connect_s": 1},
    }
    assert tree["a"] is not tree["c"]


def test_bomb_of_anchors_is_refused() -> None:
    """Nine levels of nine would be 387 million values."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match=r"more than 100000 values"):
        yaml("\n".join(levels))


def test_many_aliases_are_refused() -> None:
    """A config has no use for hundreds."""
    with pytest.raises(ConfigError, match="more than 100 aliases"):
        yaml("a: &a 1\nb: [" + ", ".join(["*a"] * 101) + "]")


def test_alias_to_itself_is_refused() -> None:
    """A tree that contains itself has no end."""
    with pytest.raises(ConfigError, match="nested deeper"):
        yaml("a: &a [*a]")


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object:os.system {}",
        "a: !!python/object/apply:os.system ['true']",
        "a: !!python/name:os.system",
        "a: !custom 1",
    ],
)
def test_tag_that_makes_an_object_is_refused(text: str) -> None:
    """Nothing but plain values comes out of YAML."""
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        yaml(text)


@pytest.mark.parametrize("read", [toml, yaml])
def test_key_given_twice_is_refused(read: object) -> None:
    """The last one does not win in silence."""
    assert callable(read)
    text = "[a]\nb = 1\nb = 2\n" if read is toml else "a:\n  b: 1\n  b: 2\n"
    with pytest.raises(ConfigError, match=r"twice|overwrite"):
        read(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: .inf", "not a finite number"),
        ("a: .nan", "not a finite number"),
        ("1: a", "key 1 is not a string"),
        ("- a", "expected a table of sections"),
        ("a: [", "while parsing"),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
        ('a: "\\ud800"', "not valid Unicode"),
        ("a: " + "[" * 40 + "]" * 40, "nested deeper than 32"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested deeper than 32"),
    ],
)
def test_yaml_that_is_no_config_is_refused_in_one_line(text: str, reason: str) -> None:
    """The message says why, without a traceback."""
    with pytest.raises(ConfigError, match=reason) as caught:
        yaml(text)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["a = inf", "a = nan", "a = ", "= 1", "a = 1\na = 2"])
def test_toml_that_is_no_config_is_refused(text: str) -> None:
    """TOML knows infinities; settings do not."""
    with pytest.raises(ConfigError):
        toml(text)


def test_bytes_that_are_no_text_are_refused() -> None:
    """The place of the first wrong byte is named."""
    with pytest.raises(ConfigError, match="not UTF-8 text at byte 4"):
        parse(b"a = \xff", name="c", yaml=False)


def test_byte_order_mark_is_no_key() -> None:
    """Some editors write one."""
    assert parse(b"\xef\xbb\xbfa = 1", name="c", yaml=False) == {"a": 1}


def test_upload_is_smaller_than_a_file() -> None:
    """What comes over an API is capped at 256 KiB, what the operator wrote is not."""
    text = b"# " + b"x" * UPLOAD_LIMIT_BYTES
    assert parse(text, name="c", yaml=True) == {}
    with pytest.raises(ConfigError, match="over 262144 bytes"):
        parse(text, name="c", yaml=True, limit_bytes=UPLOAD_LIMIT_BYTES)


def test_nulls_are_absent() -> None:
    """A key without a value is as good as none."""
    assert yaml("a: null\nb: {c: ~, d: 1}\n") == {"b": {"d": 1}}


def test_suffix_chooses_the_language(tmp_path: Path) -> None:
    """TOML unless the name says YAML."""
    (tmp_path / "a.conf").write_text("a = 1\n")
    (tmp_path / "a.YML").write_text("a: 1\n")
    assert read_file(tmp_path / "a.conf") == read_file(tmp_path / "a.YML") == {"a": 1}


def test_folder_is_no_file(tmp_path: Path) -> None:
    """The reason is the system's own."""
    with pytest.raises(ConfigError, match="Is a directory"):
        read_file(tmp_path)
