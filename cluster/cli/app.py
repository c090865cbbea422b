"""What every command shares: where the configuration is, the database, and how options and errors behave.

click is imported here and by each command's module; what is slow to import (psycopg, paramiko, rich) only where a
command that needs it runs, so that `git-cluster --help` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cluster import names
from cluster.errors import ClusterError, ConfigError, NotFound

if TYPE_CHECKING:
    from cluster.config import Config
    from cluster.db import Database
    from cluster.model import Snapshot

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class App:
    """The choices that stand before or after the subcommand, and what follows from them."""

    config_file: Path | None = None
    debug: bool = False

    def config(self) -> Config:
        from cluster.config import load

        return load(self.config_file, os.environ)

    @contextmanager
    def database(self) -> Iterator[Database]:
        with open_database(self.config()) as db:
            yield db


def open_database(config: Config, *, any_schema: bool = False) -> Database:
    """The configured database, connected. "embedded": the PostgreSQL under data_dir, started if it does not run."""
    from cluster.db import Database

    url = config.cluster.database
    if config.cluster.embedded:
        from cluster import embedded

        if config.device is None:
            raise ConfigError(
                f'{config.path}: [cluster] database = "embedded" needs a table [device]',
                hint="Add [device] with name, data_dir and key.",
            )
        url = embedded.start(config.device.data_dir / "postgres")
    return Database(url, application_name="git-cluster cli", connections=4).open(any_schema=any_schema)


def _config_file(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(App).config_file = value


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.ensure_object(App).debug:
        import logging

        ctx.ensure_object(App).debug = True
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _common_options() -> list[click.Option]:
    """--config and --debug, accepted by every group and command: before and after the subcommand."""
    return [
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            callback=_config_file,
            expose_value=False,
            is_eager=True,
            help="The configuration; else $GIT_CLUSTER_CONFIG, else /etc/git-cluster/config.toml.",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            callback=_debug,
            expose_value=False,
            is_eager=True,
            help="Show what happens, and where an error came from.",
        ),
    ]


class Command(click.Command):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["params"] = [*(kwargs.get("params") or []), *_common_options()]
        super().__init__(*args, **kwargs)


class ReaderGone(Exception):
    """Whoever read our output has gone: BrokenPipeError under a name that click does not turn into exit code 1."""


class Group(click.Group):
    command_class = Command
    group_class = type

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["params"] = [*(kwargs.get("params") or []), *_common_options()]
        super().__init__(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of a day's work, as they were added."""
        return list(self.commands)


def command(name: str) -> Callable[[Callable[..., Any]], Command]:
    """A command that belongs to the top; its docstring is its help."""
    return click.command(name, cls=Command)


def group(name: str) -> Callable[[Callable[..., Any]], Group]:
    return click.group(name, cls=Group)


pass_app = click.make_pass_decorator(App, ensure=True)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


# Parameters that cluster.names checks, so that what is wrong with a name is said in one voice.
REPOSITORY = names.repository_name
DEVICE = names.device_name


def find(db: Database, name: str) -> Snapshot:
    """A repository, for somebody who may read all of them. NotFound."""
    try:
        return db.snapshot(name)
    except NotFound:
        raise NotFound(f"there is no repository {name}", hint="`git-cluster repo list` shows them") from None


def report(error: ClusterError) -> None:
    """An error on stderr: what happened, then what to do next."""
    first, *rest = error.lines()
    click.echo(f"git-cluster: {first}", err=True)
    for line in rest:
        click.echo(f"  {line}", err=True)
