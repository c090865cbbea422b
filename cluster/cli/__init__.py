"""The command line. One module a noun; this one puts them together and turns whatever happens into an exit code.

0    done
1    an error, said in one line of what and one of what to do next; or a check that found something
2    wrong usage
130  Ctrl-C, said by nobody: whoever pressed it knows
141  whoever read our output has gone, as of `git-cluster log … | head`
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import click

from cluster import __version__
from cluster.cli import (
    access,
    demo,
    device,
    doctor,
    groups,
    place,
    repo,
    rules,
    sshd,
    status,
    token,
    upkeep,
    webhook,
)
from cluster.cli.app import App, Group, ReaderGone, report
from cluster.errors import ClusterError


@click.group(
    "git-cluster",
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every listing takes --json. Also runs as `git cluster …`.",
)
@click.version_option(__version__, prog_name="git-cluster", message="%(prog)s %(version)s")
def cli() -> None:
    """Several ordinary machines as one Git host: clone from and push to any of them."""


for _command in (
    demo.demo,
    upkeep.init,
    upkeep.serve,
    device.device,
    access.user,
    groups.group_,
    access.key,
    token.token,
    access.grant,
    access.revoke,
    rules.rule,
    rules.protect,
    access.access,
    repo.repo,
    place.placement,
    status.status,
    status.log,
    upkeep.sync,
    upkeep.verify,
    upkeep.freeze,
    upkeep.thaw,
    webhook.webhook,
    sshd.sshd,
    doctor.doctor,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    app = App()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        code = _run(app, arguments)
        sys.stdout.flush()
    except (BrokenPipeError, ReaderGone):
        code = _reader_gone()
    sys.exit(code)


def _run(app: App, arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(arguments, prog_name="git-cluster", standalone_mode=False, obj=app)
        return result if isinstance(result, int) else 0
    except ReaderGone:
        raise
    except ClusterError as error:
        _trace(app)
        report(error)
        return error.exit_code
    except getattr(click.exceptions, "NoArgsIsHelpError", ()) as error:
        error.show()
        return 2
    except click.UsageError as error:
        click.echo(f"git-cluster: {error.format_message()}", err=True)
        if error.ctx:
            click.echo(f"  see `{error.ctx.command_path} --help`", err=True)
        return 2
    except click.ClickException as error:
        click.echo(f"git-cluster: {error.format_message()}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        _trace(app)
        words = " ".join(str(error).split())
        click.echo(f"git-cluster: something went wrong: {type(error).__name__}: {words}"[:500], err=True)
        if not app.debug:
            click.echo("  run again with --debug for the details", err=True)
        return 1


def _stop(number: int, _: object) -> None:
    """Leave by way of every `finally`: a temporary key is taken back, half an import undone."""
    sys.exit(128 + number)


def _trace(app: App) -> None:
    if app.debug:
        import traceback

        traceback.print_exc()


def _reader_gone() -> int:
    """Nobody reads us any more: leave nothing for the interpreter to flush, and to complain about, at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
