"""Translate modules of the hot path with mypyc and compile them into ``build/c``.

What ``scripts/compile`` runs.  ``MODULES`` is what is compiled; a module joins where the benchmark
says that it pays.  The product's source stays free of mypyc: what it cannot take is put right
here, in its syntax tree, between the type check and the translation.

- A class it cannot make (of msgspec, a protocol, a named tuple, an error or another with an
  interpreted base) stays the interpreter's: its source runs in its place.
- ``asyncio.Protocol`` as a base only tells types, so it goes: event loops ask for methods.
- A class that some interpreted one is derived from is told so, or that derivation is refused.

What a compiled module must heed itself: no ``cast`` to a type that the value has not (it is
checked); patching its functions from outside reaches no compiled caller.

Known weakness: ``Call.__new__(Call)`` fails where both are compiled, so `dedup` does.
The syntax tree is mypy's own affair, so its version is pinned.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import setuptools  # before mypyc, which takes it where it finds it
from mypy.errors import CompileError
from mypy.fscache import FileSystemCache
from mypy.nodes import (
    ARG_NAMED,
    ARG_POS,
    AssignmentStmt,
    CallExpr,
    ClassDef,
    Expression,
    ExpressionStmt,
    MypyFile,
    NameExpr,
    StrExpr,
    SymbolTable,
    TypeInfo,
)
from mypy.types import Instance, TypedDictType
from mypyc.build import construct_groups, get_mypy_config, mypycify
from mypyc.codegen import emitmodule
from mypyc.errors import Errors
from mypyc.options import CompilerOptions

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["TPO_C_BUILD"] = "off"

from tpo_mp.c_build import HOME, MANIFEST, digest, suffix  # noqa: E402

MODULES = (
    "tpo_mp.dialects.body",
    "tpo_mp.dialects.openai_chat",
    "tpo_mp.dialects.openai_chat_body",
    "tpo_mp.dialects.openai_chat_plain",
    "tpo_mp.dialects.openai_wire",
    "tpo_mp.http.dechunk",
    "tpo_mp.http.edge",
    "tpo_mp.http.exchange",
    "tpo_mp.http.fast",
    "tpo_mp.http.head",
    "tpo_mp.http.tally",
    "tpo_mp.http.upstream",
    "tpo_mp.http.wheel",
    "tpo_mp.pipeline.answer",
    "tpo_mp.pipeline.chain",
    "tpo_mp.pipeline.codecs",
    "tpo_mp.pipeline.delivery",
    "tpo_mp.pipeline.endings",
    "tpo_mp.pipeline.flight",
    "tpo_mp.pipeline.flights",
    "tpo_mp.pipeline.http_backend",
    "tpo_mp.pipeline.lanes",
    "tpo_mp.pipeline.promise",
    "tpo_mp.pipeline.routing",
    "tpo_mp.pipeline.stage_times",
    "tpo_mp.shm.metrics",
    "tpo_mp.shm.quotas",
    "tpo_mp.shm.registry",
    "tpo_mp.shm.rows",
    "tpo_mp.shm.scores",
    "tpo_mp.shm.shares",
    "tpo_mp.surfaces.openai_api",
    "tpo_mp.types",
    "tpo_mp.worker.account",
    "tpo_mp.worker.owner",
    "tpo_mp.worker.served",
)
GROUP = "tpo_mp"
_BASES = {"builtins.object", "abc.ABC", "typing.Generic"}
_TELL_TYPES = {"asyncio.protocols.Protocol", "asyncio.protocols.BaseProtocol"}


def main() -> int:
    """Make the build; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    modules = options.only.split() or list(MODULES)
    if options.list:
        print("\n".join(modules))
        return 0
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        say(f"no C compiler here (`{compiler}`); nothing was changed")
        return 1
    os.chdir(ROOT)
    sources = digest()
    work = HOME.with_name("c.work")
    shutil.rmtree(work, ignore_errors=True)
    if not build(modules, work, "1" if options.fast else "3"):
        return 1
    made = work / "lib"
    told = {"suffix": suffix(), "sources": sources, "modules": modules}
    (made / MANIFEST).write_text(json.dumps(told, indent=1))
    shutil.rmtree(HOME, ignore_errors=True)
    made.rename(HOME)
    shutil.rmtree(work, ignore_errors=True)
    if not imports(modules):
        shutil.rmtree(HOME)
        say("what was made cannot be imported, and was removed")
        return 1
    say(f"{HOME.relative_to(ROOT)} holds {len(modules)} modules")
    return 0


def imports(modules: list[str]) -> bool:
    """Import all that was made, as a gateway would; what fails is on standard error."""
    code = "".join(f"import {name}\n" for name in ["tpo_mp.worker.shard", *modules])
    environ = os.environ | {"TPO_C_BUILD": "require", "PYTHONPATH": str(ROOT)}
    code = "import tpo_mp.c_build as c; assert c.BUILD.taken, c.BUILD.left\n" + code
    return (
        subprocess.run([sys.executable, "-P", "-c", code], env=environ, check=False).returncode == 0
    )


def say(text: str) -> None:
    print(f"scripts/compile: {text}", file=sys.stderr, flush=True)


def build(modules: list[str], work: Path, level: str) -> bool:
    """Check, translate and compile ``modules`` into ``work``/lib; say whether it went well."""
    began = time.monotonic()
    target = str(work / "c")
    options = CompilerOptions(target_dir=target, group_name=GROUP)
    argv = [
        "--config-file",
        "pyproject.toml",
        *(name.replace(".", "/") + ".py" for name in modules),
    ]
    cache = FileSystemCache()
    own, every, mypy_options = get_mypy_config(argv, None, options, cache)
    groups = construct_groups(own, False, True, GROUP)
    say(f"checking the types of {len(modules)} modules")
    try:
        result = emitmodule.parse_and_typecheck(every, mypy_options, options, groups, cache)
    except CompileError as error:
        result, problems = None, error.messages
    else:
        problems = result.errors
    if result is None or problems:
        print("\n".join(problems), file=sys.stderr)
        return False
    trees = [result.graph[source.module].tree for source in own]
    adapt([tree for tree in trees if tree is not None], result.graph["builtins"].tree.names)
    say(f"translating to C ({time.monotonic() - began:.0f} s)")
    errors = Errors(mypy_options)
    made, texts, _ = emitmodule.compile_modules_to_c(
        result, compiler_options=options, errors=errors, groups=groups
    )
    if errors.num_errors:
        print("\n".join(errors.new_messages()), file=sys.stderr)
        return False
    needed = sorted(emitmodule.collect_source_dependencies(made), key=lambda found: found.path)
    told = [(found.path, found.include_dirs, found.internal) for found in needed]
    extensions = mypycify(
        argv, opt_level=level, debug_level="0", target_dir=target, group_name=GROUP,
        skip_cgen_input=(texts, told),
    )  # fmt: skip
    say(f"compiling C ({time.monotonic() - began:.0f} s)")
    command: Any = setuptools.Distribution({"name": GROUP, "ext_modules": extensions})
    command = command.get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(work / "lib"), str(work / "temp")
    command.parallel = os.cpu_count()
    command.ensure_finalized()
    command.run()
    say(f"done ({time.monotonic() - began:.0f} s)")
    return True


def adapt(trees: list[MypyFile], builtins: SymbolTable) -> None:
    """Put right what mypyc cannot take, in the checked trees."""
    defined = [(tree, node) for tree in trees for node in tree.defs if isinstance(node, ClassDef)]
    for _, cdef in defined:
        drop_type_bases(cdef)
        if "__weakref__" in slots(cdef):  # what has an interpreted base, be it object, allows it
            cdef.removed_base_type_exprs = [builtin("object", builtins)]
    native = {cdef.info for _, cdef in defined}
    while left := {info for info in native if is_interpreted(info, native)}:
        native -= left
    bases = inherited_names({tree.path for tree in trees})
    for tree in trees:
        lines = Path(tree.path).read_text().split("\n")
        for at, node in enumerate(tree.defs):
            if not isinstance(node, ClassDef):
                continue
            if node.info not in native:
                tree.defs[at] = as_source(tree, node, lines, builtins)
            elif node.name in bases:
                allow_subclasses(node, builtins)


def is_interpreted(info: TypeInfo, native: set[TypeInfo]) -> bool:
    """Say whether a class is the interpreter's to make."""
    if info.is_protocol or info.typeddict_type or info.is_named_tuple:
        return True  # a named tuple's annotations may name what is imported for types only
    if info.is_enum:
        return False
    if info.metaclass_type and info.metaclass_type.type.fullname != "abc.ABCMeta":
        return True
    return any(base not in native and base.fullname not in _BASES for base in info.mro[1:])


def inherited_names(compiled: set[str]) -> set[str]:
    """Name every base of every class in files that are not compiled; too many do no harm."""
    found = set()
    for path in [*ROOT.glob("tpo_mp/**/*.py"), *ROOT.glob("hardware/**/*.py")]:
        if str(path.relative_to(ROOT)) in compiled:
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            for base in getattr(node, "bases", ()):
                while isinstance(base, ast.Subscript):
                    base = base.value
                found.add(getattr(base, "id", None) or getattr(base, "attr", ""))
    return found


def drop_type_bases(cdef: ClassDef) -> None:
    """Take away bases that only tell types; the class must define all of their methods itself."""
    info = cdef.info
    gone = {base for base in info.mro if base.fullname in _TELL_TYPES}
    if not gone:
        return
    wanted = {name for base in gone for name in base.names if not name.startswith("__")}
    if missing := sorted(wanted - set(info.names)):
        raise SystemExit(f"scripts/compile: {info.fullname} leaves {missing} to its base")
    info.mro = [base for base in info.mro if base not in gone]
    info.bases = [Instance(info.mro[-1], [])]
    cdef.base_type_exprs = []


def slots(cdef: ClassDef) -> list[str]:
    for node in cdef.defs.body:
        if isinstance(node, AssignmentStmt) and getattr(node.lvalues[0], "name", "") == "__slots__":
            return [item.value for item in getattr(node.rvalue, "items", ())]
    return []


def as_source(
    tree: MypyFile, cdef: ClassDef, lines: list[str], builtins: SymbolTable
) -> ExpressionStmt:
    """Make the statement that runs the source of a class where the class stood, at its lines."""
    first = min([cdef.line, *(decorator.line for decorator in cdef.decorators)])
    text = "from __future__ import annotations" + "\n" * (first - 1)
    text += "\n".join(lines[first - 1 : cdef.end_line])
    words = [StrExpr(text), StrExpr(tree.path), StrExpr("exec")]
    code = call(builtin("compile", builtins), *words)
    here = call(builtin("globals", builtins))
    statement = ExpressionStmt(call(builtin("exec", builtins), code, here))
    statement.line = statement.expr.line = code.line = here.line = cdef.line
    # What mypyc takes from globals instead of from its own store of classes.
    cdef.info.typeddict_type = TypedDictType({}, set(), set(), Instance(cdef.info, []))
    return statement


def allow_subclasses(cdef: ClassDef, builtins: SymbolTable) -> None:
    mark = NameExpr("mypyc_attr")
    mark.fullname = "mypy_extensions.mypyc_attr"
    yes: list[Expression] = [builtin("True", builtins)]
    cdef.decorators.append(CallExpr(mark, yes, [ARG_NAMED], ["allow_interpreted_subclasses"]))


def builtin(name: str, builtins: SymbolTable) -> NameExpr:
    found = NameExpr(name)
    found.node = builtins[name].node
    found.fullname = f"builtins.{name}"
    return found


def call(callee: Expression, *args: Expression) -> CallExpr:
    return CallExpr(callee, list(args), [ARG_POS] * len(args), [None] * len(args))


if __name__ == "__main__":
    sys.exit(main())
