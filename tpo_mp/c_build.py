"""The C build: modules of the hot path that ``scripts/compile`` translated and compiled.

It lies in ``build/c`` beside the package, so a checkout stays plain Python and works without.
Where it is found and fits, ``import`` takes the modules it has from there, and all others as ever.
It fits when it was made for this interpreter and every source file of the package is byte for byte
what it was made of; otherwise the whole of it is left alone, never a part: what is compiled knows
the layout of what else is compiled, and constants of what is not.

``TPO_C_BUILD`` chooses: ``auto`` (as told above), ``off``, or ``require``, with which a gateway
does not start without a build that fits.

Invariants: this is imported before any module that may be compiled, and imports none; it raises
nothing: a build that is not taken has its reason in ``left``.

Known weakness: hashing the sources costs each process that finds a build 20 ms of its start.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from sysconfig import get_config_var

PACKAGE = Path(__file__).parent
HOME = PACKAGE.parent / "build" / "c"
LIBRARY = "tpo_mp__mypyc"
MANIFEST = "manifest.json"
VARIABLE = "TPO_C_BUILD"
_CHOICES = ("auto", "off", "require")


def digest(package: Path = PACKAGE) -> str:
    """Hash every source file below ``package`` with its name, in order of names."""
    total = hashlib.blake2b(digest_size=16)
    for path in sorted(package.rglob("*.py")):
        total.update(b"%s\0" % os.fsencode(path.relative_to(package)))
        total.update(hashlib.blake2b(path.read_bytes()).digest())
    return total.hexdigest()


def suffix() -> str:
    """Say how a compiled module of this interpreter's is called after its name."""
    return str(get_config_var("EXT_SUFFIX"))


class CBuild:
    """What became of the build: ``taken`` or not, and why not (``left``)."""

    def __init__(self, home: Path = HOME, package: Path = PACKAGE) -> None:
        self.choice = os.environ.get(VARIABLE) or "auto"
        self.modules: tuple[str, ...] = ()
        self.left = self._unfit(home, package)
        self.taken = self.left is None
        self.there = (home / MANIFEST).exists()

    @property
    def name(self) -> str:
        """How /version and metrics call what runs."""
        return "c" if self.taken else "python"

    @property
    def complaint(self) -> str | None:
        """What to say at the start: of a build that is there or asked for, and left alone."""
        if self.taken or self.choice == "off":
            return None
        if self.choice not in _CHOICES:
            return self.left
        if self.there or self.choice == "require":
            return f"the C build is not used: {self.left}"
        return None

    @property
    def fatal(self) -> bool:
        """Whether the complaint is a reason not to start."""
        return self.choice not in ("auto", "off")

    def _unfit(self, home: Path, package: Path) -> str | None:
        if self.choice == "off":
            return f"{VARIABLE} is off"
        if self.choice not in _CHOICES:
            return f"{VARIABLE}: `{self.choice}` is none of {', '.join(_CHOICES)}"
        try:
            told = json.loads((home / MANIFEST).read_bytes())
            suffixed, made_of = told["suffix"], told["sources"]
            self.modules = tuple(told["modules"])
        except (FileNotFoundError, NotADirectoryError):  # nor in a zip archive
            return f"there is none in {home}; scripts/compile makes one"
        except (OSError, ValueError, KeyError, TypeError):
            return f"{home / MANIFEST} is unreadable; scripts/compile makes the build anew"
        if suffixed != suffix():
            return f"it is for {suffixed}, this is {suffix()}; scripts/compile makes it anew"
        if made_of != digest(package):
            return "sources changed since it was made; scripts/compile makes it anew"
        missing = [name for name in (LIBRARY, *self.modules) if not _file(home, name).exists()]
        if missing:
            return f"{_file(home, missing[0])} is missing; scripts/compile makes it anew"
        return None


def _file(home: Path, module: str) -> Path:
    return home / (module.replace(".", "/") + suffix())


class Finder:
    """Finds the modules of a build that was taken."""

    def __init__(self, home: Path, modules: tuple[str, ...]) -> None:
        self._files = {name: str(_file(home, name)) for name in (LIBRARY, *modules)}

    def find_spec(
        self,
        fullname: str,
        path: object = None,  # noqa: ARG002
        target: object = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Answer ``importlib``."""
        file = self._files.get(fullname)
        if file is None:
            return None
        loader = ExtensionFileLoader(fullname, file)
        return spec_from_file_location(fullname, file, loader=loader)


BUILD = CBuild()
"""Of this process."""

if BUILD.taken:
    sys.meta_path.insert(0, Finder(HOME, BUILD.modules))
