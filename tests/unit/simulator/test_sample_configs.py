"""Config files to start from: whole, right, and right with every example taken up."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tpo_mp.config import schema
from tpo_mp.config.load import load
from tpo_mp.config.schema import LATER
from tpo_mp.config.tree import Config
from tpo_mp.simulator.sample_configs import EXAMPLES, PROFILES, ConfigProfile, chosen, written


def loaded(text: str, folder: Path) -> Config:
    """Load it as ``simulate`` would."""
    path = folder / "c.toml"
    path.write_text(text)
    return load(path, {"simulate": True}, {"SIM_ADMIN_KEY": "k"})


def taken_up(text: str) -> str:
    """The file with every mark before an option or example taken away."""
    return re.sub(r"^#(?! )", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_file_says_what_its_profile_chose(profile: ConfigProfile, tmp_path: Path) -> None:
    """Nothing else counts in it, and it loads without a word."""
    text = written(profile)
    assert tomllib.loads(text) == chosen(profile)
    assert loaded(text, tmp_path).warnings == ()


@pytest.mark.parametrize("profile", ["standard", "production"])
def test_examples_and_defaults_hold_when_taken_up(profile: ConfigProfile, tmp_path: Path) -> None:
    """Whoever takes a mark away has a right file still, and a default changes nothing."""
    text = taken_up(written(profile))
    config = loaded(text, tmp_path)
    assert config.warnings == ()
    assert tomllib.loads(text)["surfaces"] == {
        "simulator_admin": {"admin_api_key": {"env": "SIM_ADMIN_KEY"}}
    }
    bare: Any = loaded(written(profile), tmp_path).backends[0]
    full: Any = config.backends[0]
    changed = {
        name for name in bare.__struct_fields__ if getattr(bare, name) != getattr(full, name)
    }
    assert changed == EXAMPLES.keys() - chosen(profile)["simulator"].keys()


@pytest.mark.parametrize("profile", ["standard", "production"])
def test_every_option_is_told_once(profile: ConfigProfile) -> None:
    """With its sentence before it."""
    options = schema.build()["properties"]["simulator"]["properties"]
    known = {name for name, field in options.items() if field != LATER}
    text = written(profile)
    assert set(tomllib.loads(taken_up(text))["simulator"]) == known
    for name in known - EXAMPLES.keys():
        sentence = options[name]["description"].split()[0]
        assert re.search(rf"^# {re.escape(sentence)}.*\n(#.*\n)+#?{name} = ", text, re.MULTILINE)
