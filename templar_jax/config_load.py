"""From a TOML file and dotted overrides to a checked RunConfig and NodeConfig.

One file feeds both: the tables [model], [window], [inner], ... and the keys name, seed, max_contributors make the run,
[node] and its sub-tables make the node. On the command line the same names carry dots: `--model.dim 256
--node.mesh.fsdp 2`. Both ways meet in one flat dict {dotted name: value}, checked against one table of settings, so
an unknown name or a wrong type reads the same wherever it was written.
"""

import argparse
import dataclasses
import difflib
import functools
import inspect
import math
import os
import re
import sys
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.config_check import check_node, check_run
from templar_jax.errors import ConfigError, TemplarError
from templar_jax.store.disk import explain

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DEFAULT = "tiny"


@dataclass(frozen=True)
class Setting:
    """One value that a file or a flag may set."""

    name: str  # dotted, e.g. "model.dim" or "node.mesh.fsdp"
    type: Any
    default: Any
    doc: str


@dataclass(frozen=True)
class Cli:
    """What a script was started with: its own flags, and the checked configuration."""

    args: argparse.Namespace
    run: RunConfig
    node: NodeConfig


def load(source: Path | str, overrides: Mapping[str, object] | None = None) -> tuple[RunConfig, NodeConfig]:
    """Reads and checks both configurations.

    Args:
      source: a TOML file, or the name of a shipped one ("tiny").
      overrides: {dotted name: value} with values as in TOML or as text from a command line.

    Raises:
      ConfigError: the file cannot be read, an unknown name (the nearest one is suggested), a wrong type, or values
        that do not fit together.
    """
    values = _read(source)
    for name, value in (overrides or {}).items():
        values[name] = _convert(_setting(name, "a command line"), value, "")
    run, node = _build(RunConfig, values, ""), _build(NodeConfig, values, "node.")
    return check_run(run), check_node(run, node)


def load_run(source: Path | str, overrides: Mapping[str, object] | None = None) -> RunConfig:
    """The run of `load`; a [node] table in the file is checked all the same."""
    return load(source, overrides)[0]


def load_node(source: Path | str, overrides: Mapping[str, object] | None = None) -> NodeConfig:
    """The node of `load`, checked within the file's run."""
    return load(source, overrides)[1]


def parse_cli(
    argv: Sequence[str], description: str, add_arguments: Callable[[argparse.ArgumentParser], object] | None = None
) -> Cli:
    """Parses a script's command line: its own arguments, `--config`, and dotted overrides.

    A flag that `add_arguments` defines wins over a setting of the same name (both can only clash without a dot).

    Raises:
      ConfigError: anything wrong, in one line. `--help` prints and exits 0.
    """
    parser = _Parser(description=description, epilog=_settings_help(), allow_abbrev=False)
    parser.add_argument(
        "--config", metavar="FILE.toml", default=DEFAULT, help=f"or one of {', '.join(shipped())} (default {DEFAULT})"
    )
    if add_arguments:
        add_arguments(parser)
    own, overrides = _split(argv, set(parser._option_string_actions))
    args, unknown = parser.parse_known_args(own)
    if unknown:
        options = [option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--")]
        parser.error(f"unknown argument {unknown[0]}{_nearest(unknown[0], [*options, *settings()], '--')}")
    run, node = load(args.config, overrides)
    return Cli(args, run, node)


def guarded(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a script's `main(argv)` and exits: 0; 2 on a ConfigError, 1 on another TemplarError (one line on stderr).

    What the operating system refuses (a disk, a mode, a file in the way) is no bug either, wherever it comes up.
    """
    try:
        code = main(sys.argv[1:]) or 0
    except TemplarError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        code = 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:  # whoever read the output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says so once more at its exit
        code = 1
    except OSError as error:
        where = error.filename if error.filename is not None else "the operating system"
        print(f"{Path(sys.argv[0]).name}: {explain(error, Path(os.fsdecode(where)))}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


def shipped() -> list[str]:
    """Names of the configurations in configs/, smallest file name first."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


@functools.cache
def settings() -> dict[str, Setting]:
    """Every setting by its dotted name, in the order of the dataclasses."""
    return {setting.name: setting for setting in [*_walk(RunConfig, ""), *_walk(NodeConfig, "node.")]}


def _walk(cls: type, prefix: str) -> Iterator[Setting]:
    types, docs = typing.get_type_hints(cls), _comments(cls)
    fields = dataclasses.fields(cls)
    for field in sorted(fields, key=lambda f: dataclasses.is_dataclass(types[f.name])):  # own keys before tables
        if dataclasses.is_dataclass(types[field.name]):
            yield from _walk(types[field.name], f"{prefix}{field.name}.")
        else:
            yield Setting(prefix + field.name, types[field.name], field.default, docs.get(field.name, ""))


def _comments(cls: type) -> dict[str, str]:
    """{field: the comment behind it in the source}."""
    return dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(cls), flags=re.MULTILINE))


def _read(source: Path | str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix != ".toml":
        path = CONFIGS / f"{source}.toml"
        if not path.exists():
            raise ConfigError(f'no configuration "{source}": give a .toml file or one of {", ".join(shipped())}')
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot read {path}: {reason}; give an existing .toml file with --config") from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return {name: _convert(_setting(name, str(path)), value, f"{path}: ") for name, value in _flatten(tables, "")}


def _flatten(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            if not value and prefix + key not in _tables():
                yield prefix + key, value  # an empty unknown table is a typo too
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _tables() -> set[str]:
    return {name[:at] for name in settings() for at in range(len(name)) if name[at] == "."}


def _setting(name: str, where: str) -> Setting:
    if name in settings():
        return settings()[name]
    if name in _tables():
        raise ConfigError(f"{name} in {where} is a table of settings, not a value: set {name}.<key>")
    raise ConfigError(f'unknown setting "{name}" in {where}{_nearest(name, list(settings()))}')


def _nearest(name: str, names: Sequence[str], dashes: str = "") -> str:
    """The nearest name as a suggestion; a right key under a wrong table counts as near."""
    name = name.lstrip("-").split("=")[0]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    near = near or [other for other in names if other.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    return f": did you mean {dashes}{near[0]}?" if near else ": see --help for all settings"


def _convert(setting: Setting, value: Any, where: str) -> Any:
    """`value` (of TOML, or text from a command line) as the setting's type."""
    kind = setting.type
    try:
        if typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return value
            wanted = "one of " + ", ".join(typing.get_args(kind))
        elif kind is bool:
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in ("true", "false"):
                return value.lower() == "true"
            wanted = "true or false"
        elif kind is int:
            if isinstance(value, (int, str)) and not isinstance(value, bool):
                return int(value)
            wanted = "a whole number"
        elif kind is float:
            wanted = "a finite number"
            if isinstance(value, (int, float, str)) and not isinstance(value, bool) and math.isfinite(float(value)):
                return float(value)
        elif kind is str:
            if isinstance(value, str):
                return value
            wanted = "text"
        else:  # tuple[str, ...]
            if isinstance(value, str):
                return tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
                return tuple(value)
            wanted = "a list of texts"
    except ValueError:
        wanted = "a whole number" if kind is int else "a finite number"
    raise ConfigError(f"{where}{setting.name} is {value!r}: it must be {wanted} (default {setting.default!r})")


def _build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    types = typing.get_type_hints(cls)
    given = {}
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        if dataclasses.is_dataclass(types[field.name]):
            given[field.name] = _build(types[field.name], values, name + ".")  # pyright: ignore[reportArgumentType]
        elif name in values:
            given[field.name] = values[name]
    return cls(**given)


def _split(argv: Sequence[str], own_options: set[str]) -> tuple[list[str], dict[str, str]]:
    """Separates dotted overrides (and run keys such as --name) from the script's own arguments."""
    own, overrides = [], {}
    rest = iter(argv)
    for word in rest:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--")
        if not flag.startswith("--") or flag in own_options or not ("." in name or name in settings()):
            own.append(word)
            continue
        setting = _setting(name, "the command line")
        if not equals:
            value = next(rest, None)
            if value is None:
                raise ConfigError(f"--{name} needs a value, e.g. --{name} {setting.default}")
        overrides[name] = value
    return own, overrides


class _Parser(argparse.ArgumentParser):
    """argparse with errors as ConfigError and an epilog that keeps its lines."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message if "--help" in message else f"{message} (--help lists everything)")


def _settings_help() -> str:
    """The settings by table: flag, default, meaning."""
    lines = ["settings (in FILE.toml, or as flags):"]
    table = None
    for setting in settings().values():
        here = setting.name.rpartition(".")[0]
        if here != table:
            table = here
            shared = "this machine's own" if here.startswith("node") else "shared by all participants"
            lines += ["", f"  [{table}]  {shared}" if table else "  the run, shared by all participants"]
        default = ",".join(setting.default) if isinstance(setting.default, tuple) else str(setting.default)
        choices = "|".join(typing.get_args(setting.type)) if typing.get_origin(setting.type) is Literal else ""
        doc = f"{choices}  {setting.doc}".strip() if choices else setting.doc
        lines.append(f"    --{setting.name:<32} {default or '-':<10} {doc}".rstrip())
    return "\n".join(lines)
