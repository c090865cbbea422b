"""`git-cluster sshd …`: OpenSSH in place of the built-in SSH server, or beside it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cluster.cli.app import App, group, pass_app
from cluster.errors import ClusterError


@group("sshd")
def sshd() -> None:
    """OpenSSH as an endpoint of this device: see docs/openssh.md."""


@sshd.command("install")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--port", type=click.IntRange(1, 65535), default=2222, show_default=True,
              help="Of the sshd of its own that sshd_config is for.")  # fmt: skip
@click.option("--user", metavar="U", help="Whom clients log in as; default: who owns data_dir.")
@click.option("--host-key", metavar="FILE", type=click.Path(path_type=Path),
              help="Of that sshd; default: [ssh] host_key.")  # fmt: skip
@pass_app
def install(app: App, directory: Path, port: int, user: str | None, host_key: Path | None) -> None:
    """Write into DIRECTORY what sshd needs for this device: a hook, and two examples of a configuration."""
    from cluster.sshd_files import install as write

    done = write(app.config(), directory, port=port, user=user, host_key=host_key)
    click.echo(f"{done.hook}: run by sshd, for each key and each command")
    own, match = done.configs
    click.echo(f"{own}: for an sshd of its own, on port {port}")
    click.echo(f"{match}: for the system's sshd, in /etc/ssh/sshd_config.d/")
    if done.untrusted:
        click.echo(
            f"warning: sshd runs nothing below {done.untrusted}, where others than root may write\n"
            "  install into a folder that belongs to root all the way up, such as /usr/local/lib/git-cluster",
            err=True,
        )


@sshd.command("keys", hidden=True)
@click.argument("hook")
@click.argument("key_type")
@click.argument("key_base64")
@pass_app
def keys(app: App, hook: str, key_type: str, key_base64: str) -> None:
    """What the hook runs as AuthorizedKeysCommand where there is no daemon."""
    from cluster import alone

    click.echo(alone.keys(app.config(), os.environ, hook, key_type, key_base64), nl=False)


@sshd.command("serve", hidden=True)
@click.argument("who", nargs=-1)
@pass_app
def serve(app: App, who: tuple[str, ...]) -> None:
    """What the hook runs as the forced command where there is no daemon."""
    from cluster import alone

    try:
        code = alone.serve(app.config(), os.environ, who)
    except ClusterError:  # of a file that the client need not know of; "doctor" says it
        click.echo("remote: cluster: error: this device is not set up right", err=True)
        click.echo(
            "remote: cluster: its administrator sees what is wrong with `git-cluster doctor`", err=True
        )
        code = 1
    os._exit(code & 0xFF)  # no thread is waited for: the client has its answer
