"""``tpo-mp keys``: make API keys, and the digests by which a configuration knows them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from tpo_mp.errors import ExitCode

_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")


@click.group(no_args_is_help=True)
def keys() -> None:
    """Make API keys for callers of a gateway."""


@keys.command("new")
@click.argument("key_id", metavar="ID", default="default")
@click.option("--tenant", help="Tenant it belongs to [its id].")
@click.option("--tier", help="Tier of limits it gets [standard].")
@click.option("--admin", is_flag=True, help="It may use admin routes.")
@click.option("--quiet", "-q", is_flag=True, help="Print the key alone.")
def make(key_id: str, tenant: str | None, tier: str | None, admin: bool, quiet: bool) -> int:
    """Print a new key on stdout, and on stderr the lines of configuration that let it in.

    The key is shown this once and kept nowhere.  ID is its public name, in records and metrics.
    """
    from tpo_mp.config.api_keys import new_key

    if not _ID.fullmatch(key_id):
        raise click.BadParameter("1 to 64 letters, digits, dots and dashes", param_hint="ID")
    click.echo(new_key(key_id))
    if quiet:
        return ExitCode.OK
    variable = f"TPO_KEY_{re.sub('[^A-Z0-9]', '_', key_id.upper())}"
    lines = [f"# {variable} is to hold the key", "[auth]", "enabled = true", "",
             "[[auth.keys]]", f'id = "{key_id}"', f'secret = {{ env = "{variable}" }}']  # fmt: skip
    lines += [
        f'{name} = "{value}"' for name, value in (("tenant", tenant), ("tier", tier)) if value
    ]
    if admin:
        lines.append("admin = true")
    click.echo("\n" + "\n".join(lines), err=True)
    return ExitCode.OK


@keys.command("hash")
@click.option(
    "--pepper-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File that holds the pepper of [auth].",
)  # fmt: skip
def show_hash(pepper_file: Path | None) -> int:
    """Read a key from stdin and print its hash, for `hash` under [[auth.keys]]."""
    from tpo_mp.config.api_keys import digest, is_damaged
    from tpo_mp.config.rules import KEY_CHARACTERS

    if sys.stdin.isatty():
        click.echo("key: ", nl=False, err=True)
    key = sys.stdin.readline().strip()
    if len(key) < KEY_CHARACTERS:
        raise click.ClickException(f"a key has {KEY_CHARACTERS} characters or more")
    if is_damaged(key):
        raise click.ClickException("the key is damaged: its last characters do not fit the others")
    pepper = pepper_file.read_text().strip() if pepper_file is not None else ""
    click.echo(digest(key.encode(), pepper.encode()).hex())
    return ExitCode.OK
