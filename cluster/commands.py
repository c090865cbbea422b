"""What a user's commands do (`ssh git@host whoami`, …): each answers on standard output, in plain text or as JSON.

They are for people without a shell on the server. Everything is about the one who asks, or decided by their grants;
what they may not read is answered with the words for what is not there.

A client may be slow to send and slow to read: no database connection is held meanwhile (guarantee G5).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import cluster
from cluster import access, keys, ref_rules, user_commands
from cluster.access import Decision
from cluster.client import Client, Input
from cluster.creating import create
from cluster.db import Database, key_gone, no_repository
from cluster.errors import ClientGone, NotFound, Refused, UsageError
from cluster.logs import fields
from cluster.model import Actor, ActorKind, DeviceMode, Level
from cluster.node import Node
from cluster.plain import cell, moment, plain_table
from cluster.ssh_command import UserCommand
from cluster.status import timestamp
from cluster.visible import Visible, visible

EVERYONE = "everyone"
"""Whoever has a key here, where a user could stand."""

MAX_KEY_INPUT = 16 * 1024
"""Bytes of standard input that are read for a public key."""

_log = logging.getLogger(__name__)


def run(node: Node, actor: Actor, command: UserCommand, client: Client) -> int:
    """Carry out the command of a user who is proven; the exit code. ClusterError."""
    asked = user_commands.parse(command)
    match asked:
        case user_commands.Help():
            _print(client, user_commands.help_text(asked.command))
        case user_commands.WhoAmI():
            _whoami(node, actor, client, as_json=asked.json)
        case user_commands.Info():
            _info(node, actor, client, as_json=asked.json)
        case user_commands.Repos():
            _repos(node, actor, client, asked)
        case user_commands.Access():
            _access(node, actor, client, asked)
        case user_commands.KeyList():
            _key_list(node, actor, client, as_json=asked.json)
        case user_commands.KeyAdd():
            _key_add(node, actor, client, asked)
        case user_commands.KeyRemove():
            _key_remove(node, actor, client, asked)
        case user_commands.Create():
            _create(node, actor, client, asked)
    return 0


def _print(client: Client, text: str) -> None:
    client.write(f"{text}\n".encode())


def _answer(client: Client, document: Any) -> None:
    _print(client, json.dumps(document, indent=2, ensure_ascii=False))


def _pairs(client: Client, pairs: Sequence[tuple[str, object]]) -> None:
    """A key and its value a line, the values below one another."""
    width = max(len(key) for key, _ in pairs) + 3
    _print(client, "\n".join(f"{key + ':':<{width}}{cell(value)}" for key, value in pairs))


def _many(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


# Who is asking


def _whoami(node: Node, actor: Actor, client: Client, *, as_json: bool) -> None:
    standing = node.db.standing(actor.name)
    groups = standing.groups if standing else ()
    key = next((key for key in node.db.own_keys(actor.name) if key.fingerprint == actor.fingerprint), None)
    until = actor.certified_until
    expires = until or (key.expires_at if key else None)
    if as_json:
        proof = {
            "kind": "certificate" if until else "key",
            "fingerprint": actor.fingerprint,
            "comment": key.comment if key and not until else None,
            "expires_at": timestamp(expires),
        }
        _answer(client, {"user": actor.name, "proof": proof, "groups": list(groups)})
        return
    said = f"{'certificate for key' if until else 'key'} {actor.fingerprint}"
    if key and key.comment and not until:
        said += f" ({key.comment})"
    if expires:
        said += f", until {moment(expires)}"
    _pairs(
        client, [("user", actor.name), ("proof", said), ("groups", " ".join(f"@{group}" for group in groups))]
    )


def _info(node: Node, actor: Actor, client: Client, *, as_json: bool) -> None:
    devices = node.db.devices()
    counts = dict.fromkeys([*map(str, Level), "here"], 0)
    for page in visible(node.db, actor, device=node.name):
        _still(node, actor, client)
        for each in page:
            counts["here"] += each.repository.here
            for level in Level:
                counts[level] += level.rank <= each.level.rank
    size, refs = node.limits.push_size, node.limits.push_refs
    if as_json:
        rows = [
            {"name": device.name, "ssh": device.ssh_url, "http": device.http_url, "state": device.state}
            for device in devices
        ]
        document = {
            "cluster": node.cluster,
            "version": cluster.__version__,
            "device": node.name,
            "user": actor.name,
            "devices": rows,
            "repositories": counts,
            "limits": {"push_size": size, "push_refs": refs},
        }
        _answer(client, document)
        return
    readable = _many(counts["read"], "repository", "repositories")
    may = f"{readable} to read, {counts['write']:,} to push to, {counts['admin']:,} to administer"
    if counts["here"] < counts["read"]:
        may += f"; this device keeps {counts['here']:,} of them"
    mode = next((device.mode for device in devices if device.name == node.name), DeviceMode.ENABLED)
    _pairs(
        client,
        [
            ("cluster", f"{node.cluster}, git-cluster {cluster.__version__}"),
            (
                "device",
                f"{node.name}, which you have reached"
                + ("" if mode is DeviceMode.ENABLED else f": it is {mode}"),
            ),
            ("user", actor.name),
            ("may", may),
            ("a push", f"brings {_size(size)} and {_many(refs, 'ref', 'refs')} at the most"),
        ],
    )
    table = [[device.name, device.state, device.ssh_url, device.http_url] for device in devices]
    _print(client, "\n" + plain_table(["device", "state", "ssh", "http"], table))


def _size(count: int) -> str:
    """Bytes for people, in the largest unit of which they are a whole number."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count and count % 2**power == 0:
            return f"{count >> power:,} {unit}"
    return f"{count:,} bytes"


# What they may


def _still(node: Node, actor: Actor, client: Client) -> None:
    """Between two pages. ClientGone; Refused where a listing has outlived what proved its reader."""
    if client.gone:
        raise ClientGone("the client hung up")
    if not node.db.proves(actor):
        raise key_gone()


def _repos(node: Node, actor: Actor, client: Client, asked: user_commands.Repos) -> None:
    """Line by line, and nothing is kept: so the level, which has a width of its own, comes first."""
    opening = "[\n  " if asked.json else "LEVEL  REPOSITORY\n"
    before = opening
    for number, page in enumerate(visible(node.db, actor, asked.pattern)):
        if number:
            _still(node, actor, client)
        text = ""
        for each in page:
            text += before + (
                _json_line(each) if asked.json else f"{each.level:<5}  {each.repository.name}\n"
            )
            before = ",\n  " if asked.json else ""
        client.write(text.encode())
    if asked.json:
        _print(client, "[]" if before is opening else "\n]")
    elif before is opening:
        which = f" that {asked.pattern} means" if asked.pattern else ""
        client.say(f"there is no repository{which} that you may read")


def _json_line(each: Visible) -> str:
    found = each.repository
    return json.dumps({"name": found.name, "level": each.level, "version": found.version})


def _access(node: Node, actor: Actor, client: Client, asked: user_commands.Access) -> None:
    name, whom = asked.repository, asked.user or actor.name
    snapshot = node.db.snapshot(name, actor)
    decision = access.decide(snapshot.grants, actor, name)
    if not decision.allows(Level.READ):
        raise no_repository(name)
    if whom != actor.name:
        if not decision.allows(Level.ADMIN):
            raise Refused(
                f"you may not ask about others' access to {name}",
                hint="those who may admin it can, and administrators",
            )
        snapshot = node.db.snapshot(name, Actor(ActorKind.USER, whom, ""))
        decision = access.decide(snapshot.grants, Actor(ActorKind.USER, whom, ""), name)
    notes = _notes_on(node.db, whom) if whom != actor.name else []
    whose = Actor(ActorKind.USER, whom, "")
    on_ref = ref_rules.decide(snapshot.rules, whose, name, asked.ref) if asked.ref else None
    writes = decision.allows(Level.WRITE)
    if asked.json:
        document: dict[str, Any] = {
            "actor": whom,
            "repository": name,
            "level": decision.level,
            "because": decision.because,
            "pattern": decision.grant.pattern if decision.grant else None,
        }
        if asked.ref:
            assert on_ref
            may = ref_rules.listed(on_ref.may) if writes else []
            document |= {"ref": asked.ref, "may": may, "rule": on_ref.because or None}
        _answer(client, document | {"notes": notes})
        return
    lines = [decision.because, *notes]
    if asked.ref and on_ref:
        lines.append(on_ref.explained(whom, asked.ref, writes=writes))
    _print(client, "\n".join(lines))


def _notes_on(db: Database, user: str) -> list[str]:
    """What a grant does not say about somebody. NotFound where there is no such user."""
    if user == EVERYONE:
        return []
    standing = db.standing(user)
    if standing is None:
        raise NotFound(f"there is no user {user}", hint="check the name")
    return [f"{user} is disabled: no key proves them"] if standing.disabled else []


# Their keys


def _key_list(node: Node, actor: Actor, client: Client, *, as_json: bool) -> None:
    found = node.db.own_keys(actor.name)
    if as_json:
        rows = [
            {
                "fingerprint": key.fingerprint,
                "public_key": key.public_key,
                "comment": key.comment,
                "created_at": timestamp(key.created_at),
                "expires_at": timestamp(key.expires_at),
                "counts": key.counts,
                "current": key.fingerprint == actor.fingerprint,
            }
            for key in found
        ]
        _answer(client, rows)
        return
    if not found:
        client.say("you have no key here yet: ssh git@host key add <FILE")
        return
    table = [
        [
            key.fingerprint,
            key.public_key.partition(" ")[0],
            key.created_at,
            f"{moment(key.expires_at)}{'' if key.counts else ', expired'}" if key.expires_at else "never",
            "this" if key.fingerprint == actor.fingerprint else "",
            key.comment,
        ]
        for key in found
    ]
    _print(client, plain_table(["fingerprint", "type", "added", "expires", "in use", "comment"], table))


def _key_add(node: Node, actor: Actor, client: Client, asked: user_commands.KeyAdd) -> None:
    expires = keys.expiry(asked.expires, datetime.now(UTC)) if asked.expires else None
    key = keys.parse(_standard_input(client))
    # It may have taken long to come, so what proves the user is looked at again with the insertion.
    until = node.db.add_own_key(actor, key.fingerprint, key.line, key.comment, expires)
    _log.info("key added", extra=fields(actor=actor.name, fingerprint=key.fingerprint, by=actor.fingerprint))
    _print(client, f"key {key.fingerprint} added{f', until {moment(until)}' if until else ''}")
    if until != expires:
        client.say(
            f"note: no longer than the {'certificate' if actor.certified_until else 'key'} that proved you"
        )


def _standard_input(client: Client) -> str:
    data = Input(client).read(MAX_KEY_INPUT + 1)
    if len(data) > MAX_KEY_INPUT:
        raise UsageError(
            "that is far too long for a public key", hint="Give one .pub file: key add <laptop.pub"
        )
    if not data.strip():
        raise UsageError(
            "there is no public key on standard input",
            hint="Give a .pub file: ssh git@host key add <laptop.pub",
        )
    return data.decode("utf-8", "replace")


def _key_remove(node: Node, actor: Actor, client: Client, asked: user_commands.KeyRemove) -> None:
    node.db.remove_own_key(actor, asked.fingerprint)
    _log.info(
        "key removed", extra=fields(actor=actor.name, fingerprint=asked.fingerprint, by=actor.fingerprint)
    )
    _print(client, f"key {asked.fingerprint} removed")
    if asked.fingerprint == actor.fingerprint and actor.certified_until is None:
        client.say("note: that was the key of this connection; log in with another one from now on")


# Making repositories


def _create(node: Node, actor: Actor, client: Client, asked: user_commands.Create) -> None:
    """Whoever may create a repository may read it, so the answer that the name is taken tells them nothing."""
    name = asked.repository
    if not _may_create(node.db, actor, name).allows(Level.ADMIN):
        raise Refused(
            f"you may not create {name}",
            hint=f"an administrator can let you: git-cluster grant admin {actor.name} {name}",
        )
    try:
        node.db.snapshot(name)
    except NotFound:
        pass
    else:
        raise Refused(
            f"there is a repository {name} already", hint="`ssh git@host repos` lists those that you may read"
        )
    made = create(node.db, name, head=asked.head, object_format=asked.object_format, actor=actor.name)
    _log.info("repository created", extra=fields(repository=name, actor=actor.name))
    holders, copies = made.devices, made.min_copies
    if made.note:
        client.say(f"note: {made.note}")
    urls = [f"{device.ssh_url}/{name}" for device in holders]
    if asked.json:
        document = {
            "name": name,
            "devices": [device.name for device in holders],
            "min_copies": copies,
            "urls": urls,
        }
        _answer(client, document)
        return
    where = ", ".join(device.name for device in holders)
    counts = f"a push counts with {_many(copies, 'copy', 'copies')}"
    first = next(
        (url for device, url in zip(holders, urls, strict=True) if device.name == node.name), urls[0]
    )
    _print(client, f"repository {name} created on {where}; {counts}\nclone it with: git clone {first}")


def _may_create(db: Database, actor: Actor, name: str) -> Decision:
    return access.decide(db.grants_to(actor.name), actor, name)
