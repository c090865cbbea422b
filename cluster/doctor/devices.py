"""Devices as their rows and their answers show them. Pure: the asking is examination.py's."""

from __future__ import annotations

from dataclasses import dataclass

from cluster import __version__
from cluster.doctor.finding import Finding, ok, problem, warning
from cluster.doctor.judge import CLOCK_PROBLEM, CLOCK_WARNING, milliseconds, seconds
from cluster.errors import ClusterError
from cluster.model import Device, DeviceMode
from cluster.ping import Pong


@dataclass(frozen=True, slots=True)
class Answer:
    """A device answered, with its registered host key.

    pong: None where it was only greeted, for want of a key that it knows.
    skew: seconds by which its clock is ahead of the database's; None: not known.
    """

    pong: Pong | None = None
    skew: float | None = None


def registration(device: Device, advertise: str | None) -> Finding:
    """This machine's own row. advertise: what its configuration says."""
    check, name = "registration", device.name
    if device.mode is DeviceMode.DISABLED:
        return warning(
            check, f"device {name} is disabled: it serves nobody", f"`git-cluster device enable {name}`"
        )
    if advertise and advertise.rstrip("/") != device.ssh_url.rstrip("/"):
        return warning(
            check,
            f"device {name} is registered at {device.ssh_url}, and [ssh] advertise says {advertise}",
            "peers use the registered one: correct the configuration, or register it anew",
        )
    if device.mode is DeviceMode.DRAINING:
        return ok(check, f"device {name} at {device.ssh_url}; it drains: it is given nothing new")
    return ok(check, f"device {name} at {device.ssh_url}")


def daemon(device: Device | None, *, held: bool) -> Finding:
    """Of this machine. held: somebody holds data_dir's serve.lock. device: None where the database does not tell."""
    check, start = "daemon", "`git-cluster serve`, or `systemctl start git-cluster`"
    if not held:
        if device and device.online:
            return warning(
                check,
                f"device {device.name} is alive, but nobody serves from this data_dir",
                f"does another machine, or another configuration, serve as {device.name}?",
            )
        return problem(check, "no daemon serves from this data_dir", f"start it: {start}")
    if device is None or device.online:
        return ok(check, "it runs" if device is None else f"it runs, seen {_ago(device)} ago")
    if device.silent_for is None or device.stopped:
        return problem(
            check,
            "it runs, and the database has had no sign of life from it",
            "its log says why: is it still starting, does it use this configuration's database?",
        )
    return problem(
        check,
        f"it runs, and the database has had no sign of life from it for {_ago(device)}",
        "its log says why; start it again if it hangs",
    )


def peer(device: Device, answer: Answer | ClusterError) -> Finding:
    """Another device. answer: what it said, or why it said nothing."""
    check, name = f"peer {device.name}", device.name
    if isinstance(answer, ClusterError):
        return _silent(check, device, answer)
    pong = answer.pong
    if pong and pong.device != name:
        return problem(
            check,
            f"at device {name}'s address answers device {pong.device}, with the host key of {name}",
            "give each device a host key and an address of its own, and register these",
        )
    if not device.online:
        since = f"for {_ago(device)}" if device.silent_for is not None else "ever"
        return problem(
            check,
            f"it answers, and the database has had no sign of life from it {since}",
            f"run `git-cluster doctor` on {name}: can it reach the database?",
        )
    if pong is None:
        return ok(check, f"{device.state}; it answers with the registered host key")
    return _odd(check, device, pong, answer.skew) or ok(
        check, f"{device.state}, {milliseconds(pong.taken)} away, git-cluster {pong.version}"
    )


def own(device: Device, answer: Answer | ClusterError, *, locally: bool) -> Finding:
    """This machine's endpoint. locally: its registered URL did not lead there, but the address it listens on did."""
    check = "endpoint"
    if isinstance(answer, ClusterError):
        return problem(check, answer.what, answer.hint or "the daemon's log says why")
    if locally:
        return warning(
            check,
            f"it answers where it listens, but from here not at {device.ssh_url}",
            "peers and clients use the registered URL: does it lead here from where they are?",
        )
    pong = answer.pong
    if pong is None:
        return ok(check, f"{device.ssh_url} answers with the registered host key")
    if pong.device != device.name:
        return problem(
            check,
            f"at {device.ssh_url} answers device {pong.device}",
            "register the address of this device: each has one of its own",
        )
    if pong.version != __version__:
        return warning(
            check,
            f"the daemon runs git-cluster {pong.version or 'of an older version'}, this command is {__version__}",
            "start the daemon again after an upgrade",
        )
    return ok(check, f"{device.ssh_url} answers, with the registered host key")


def disabled(device: Device) -> Finding:
    return ok(f"peer {device.name}", "disabled: not asked")


def _silent(check: str, device: Device, error: ClusterError) -> Finding:
    name = device.name
    gone = f"if it is gone for good: `git-cluster device drain {name}`, then move its copies away"
    if device.online:
        return problem(check, error.what, error.hint or f"look at device {name}'s log")
    if device.silent_for is None:
        return problem(check, f"it was never started: {error.what}", f"`git-cluster serve` on {name}")
    if device.stopped:
        return problem(
            check,
            f"offline: it was stopped {_ago(device)} ago: {error.what}",
            f"`git-cluster serve` on {name}; {gone}",
        )
    return problem(
        check,
        f"offline: last seen {_ago(device)} ago: {error.what}",
        f"look at {name}, or its network; {gone}",
    )


def _odd(check: str, device: Device, pong: Pong, skew: float | None) -> Finding | None:
    """What is wrong with a device that answers."""
    if pong.version != __version__:
        return warning(
            check,
            f"{device.state}; it runs git-cluster {pong.version or 'of an older version'}, this one is {__version__}",
            "run the same version on every device",
        )
    if skew is not None and abs(skew) > CLOCK_WARNING:
        finding = problem if abs(skew) > CLOCK_PROBLEM else warning
        return finding(
            check,
            f"{device.state}; its clock is {seconds(abs(skew))} {'ahead of' if skew > 0 else 'behind'} the database's",
            f"have its clock kept right: chrony, systemd-timesyncd or another NTP client on {device.name}",
        )
    return None


def _ago(device: Device) -> str:
    return seconds(device.silent_for or 0.0)
