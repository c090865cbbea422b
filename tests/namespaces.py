"""Network namespaces, wired to a router between them: what tests/network.py cuts where it may."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path


class Wires:
    """A block of 16 addresses, a namespace for each of `names`, and one more that routes between them and us.

    Ours are .1 for clients and .2 for PostgreSQL, so that one can be cut off without the other. Everything carries
    our process id in its name, and the block is ours by its route: two runs do not meet.
    """

    _made = itertools.count()

    def __init__(self, names: str) -> None:
        self.names = names
        self._prefix = f"gc{os.getpid()}-{next(self._made)}"
        self._router = f"{self._prefix}-r"
        self._dropped: dict[str, list[list[str]]] = {name: [] for name in names}
        self._present: set[str] = set()
        self.block = ""
        self._remove_left_over()
        try:
            self._ip("netns", "add", self._router)
            self._ip("link", "add", self._prefix, "type", "veth", "peer", "name", "us", "netns", self._router)
            self._claim()
            self._set_up_router()
            for name in names:
                self.add(name)
        except BaseException:
            self.close()
            raise

    @property
    def clients(self) -> str:
        return self._at(1)

    @property
    def database(self) -> str:
        return self._at(2)

    @property
    def router(self) -> str:
        """The namespace between the others."""
        return self._router

    def address(self, name: str) -> str:
        """Of a device."""
        return self._at(4 + self.names.index(name))

    def namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def add(self, name: str) -> None:
        """Make a device's namespace, if it is not there."""
        if name in self._present:
            return
        namespace = self.namespace(name)
        self._ip("netns", "add", namespace)
        self._present.add(name)
        self._ip("-n", self._router, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0",
                 "netns", namespace)  # fmt: skip
        self._in(self._router, f"link set to-{name} up", f"route add {self.address(name)}/32 dev to-{name}")
        self._in(
            namespace,
            "link set lo up",
            "link set eth0 up",
            f"address add {self.address(name)}/32 dev eth0",
            f"route add {self._at(3)}/32 dev eth0",
            f"route add default via {self._at(3)} src {self.address(name)}",
        )

    def remove(self, name: str) -> None:
        """End every process of a device's namespace, and that with all connections it had."""
        if name not in self._present:
            return
        namespace = self.namespace(name)
        self._end_all(namespace)
        self._present.discard(name)
        self._ip("netns", "delete", namespace)
        with suppress(subprocess.CalledProcessError):  # with its namespace it goes by itself, but not at once
            self._ip("-n", self._router, "link", "delete", f"to-{name}")

    def drop(self, name: str, other: str) -> None:
        """Lose every packet between a device and an address."""
        mine = self.address(name)
        for source, target in ((mine, other), (other, mine)):
            rule = ["from", source, "to", target, "blackhole"]
            if rule not in self._dropped[name]:
                self._ip("-n", self._router, "rule", "add", *rule)
                self._dropped[name].append(rule)

    def pass_all(self, name: str) -> None:
        """Undo every `drop` of a device."""
        while self._dropped[name]:
            self._ip("-n", self._router, "rule", "delete", *self._dropped[name].pop())

    def close(self) -> None:
        """Remove everything, and end what still runs in it."""
        with suppress(subprocess.CalledProcessError):
            self._ip("link", "delete", self._prefix)
        for name in list(self._present):
            with suppress(subprocess.CalledProcessError):
                self.remove(name)
        with suppress(subprocess.CalledProcessError):
            self._ip("netns", "delete", self._router)

    def _remove_left_over(self) -> None:
        """What a run left behind that was killed: the namespaces of processes that are no more."""
        for namespace in re.findall(r"^gc\d+-\d+-\w+", self._ip("netns", "list"), re.MULTILINE):
            if not Path(f"/proc/{namespace[2:].split('-')[0]}").exists():
                with suppress(subprocess.CalledProcessError):  # another run does the same just now
                    self._end_all(namespace)
                    self._ip("netns", "delete", namespace)

    def _end_all(self, namespace: str) -> None:
        """Kill every process in a namespace."""
        while pids := self._ip("netns", "pids", namespace).split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.01)

    def _claim(self) -> None:
        """Take a block of 198.18.0.0/15, which is for tests of networks (RFC 2544), that nobody here has."""
        self._ip("link", "set", self._prefix, "up")
        blocks = 1 << (28 - 15)
        for number in range(os.getpid(), os.getpid() + blocks):
            offset = (number % blocks) * 16
            self.block = f"198.{18 + (offset >> 16)}.{offset >> 8 & 255}.{offset & 255}/28"
            try:  # the kernel takes a route only once
                self._ip("route", "add", self.block, "dev", self._prefix)
            except subprocess.CalledProcessError:
                continue
            break
        self._in(
            "",
            f"address add {self._at(1)}/32 dev {self._prefix}",
            f"address add {self._at(2)}/32 dev {self._prefix}",
            f"route add {self._at(3)}/32 dev {self._prefix}",
            f"route replace {self.block} via {self._at(3)} dev {self._prefix} src {self._at(1)}",
        )

    def _set_up_router(self) -> None:
        self._in(
            self._router,
            "link set lo up",
            "link set us up",
            f"address add {self._at(3)}/32 dev us",
            f"route add {self._at(1)}/32 dev us",
            f"route add {self._at(2)}/32 dev us",
        )
        self._ip("netns", "exec", self._router, "sh", "-c",
                 "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter")  # fmt: skip

    def _at(self, number: int) -> str:
        network, _, last = self.block.removesuffix("/28").rpartition(".")
        return f"{network}.{int(last) + number}"

    def _in(self, namespace: str, *commands: str) -> None:
        """Several commands of `ip`, in a namespace ("": ours)."""
        where = ["-n", namespace] if namespace else []
        self._ip(*where, "-batch", "-", data="\n".join(commands))

    @staticmethod
    def _ip(*arguments: str, data: str = "") -> str:
        done = subprocess.run(["ip", *arguments], input=data, capture_output=True, text=True)
        if done.returncode != 0:
            error = subprocess.CalledProcessError(
                done.returncode, ["ip", *arguments], done.stdout, done.stderr
            )
            error.add_note(done.stderr)
            raise error
        return done.stdout
