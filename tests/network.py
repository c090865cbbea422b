"""Networks that can be cut between the devices of a cluster, and between a device and PostgreSQL.

Two kinds behind one interface, `Network`:

    Namespaces  as root on Linux: each device has a network namespace of its own, with a router between them. What is
                cut vanishes without a word, both ways, as it does behind a dead switch: nobody is told, connections
                hang until a time-out of their own. A device without power is a namespace that is gone.
    Proxies     as anybody: a proxy before PostgreSQL for each device, and one before each device for each of its
                peers. What is cut ends at once and is refused from then on, as by a firewall that says no.

Clients are never cut off, except from a device without power: what they are told is what the tests are about.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import psycopg

from cluster import embedded
from cluster.loopback import LoopbackDevice
from tests.cluster_fixture import Cluster
from tests.namespaces import Wires
from tests.proxy import CuttingProxy

KINDS = ("namespaces", "proxies")


class Network(ABC):
    """A PostgreSQL and places for devices, with everything between them in our hands.

    `postgres` is the PostgreSQL's directory (for embedded.crash and embedded.start), `url` reaches it past all cuts.
    """

    def __init__(self, directory: Path) -> None:
        self.postgres = directory / "postgres"
        self.url = embedded.start(self.postgres)

    @abstractmethod
    def place(self, device: LoopbackDevice) -> LoopbackDevice:
        """Give a new device its place here."""

    @abstractmethod
    def database_of(self, device: str, database: str) -> str:
        """The URL by which a device reaches the database of this name."""

    @abstractmethod
    def peer_url(self, device: LoopbackDevice) -> str:
        """The URL by which its peers reach a device."""

    @abstractmethod
    def command(self, device: str, command: list[str]) -> list[str]:
        """The same command, on that device."""

    @abstractmethod
    def cut(self, device: str, *, database: bool = False, peers: bool = False) -> None:
        """Let nothing pass any more, in both directions, until `lift`."""

    @abstractmethod
    def unplug(self, device: LoopbackDevice) -> None:
        """Take its power away: every process on it ends, and nobody hears of it. `lift` before it starts again."""

    @abstractmethod
    def lift(self, device: str) -> None:
        """Undo `cut` and `unplug`."""

    def close(self) -> None:
        """Remove everything that was made."""
        embedded.stop(self.postgres)


class NetworkCluster(Cluster):
    """A cluster whose devices are on a Network."""

    def __init__(self, directory: Path, database: str, writes: Mapping[str, str], network: Network) -> None:
        super().__init__(directory, network.url.replace("/postgres?", f"/{database}?", 1), writes)
        self.network = network
        self._name = database

    def new_device(self, name: str) -> LoopbackDevice:
        return self.network.place(super().new_device(name))

    def database_of(self, name: str) -> str:
        return self.network.database_of(name, self._name)

    def peer_url(self, device: LoopbackDevice) -> str:
        return self.network.peer_url(device)

    def command(self, device: LoopbackDevice) -> list[str]:
        return self.network.command(device.name, super().command(device))


@contextmanager
def cluster_on(
    network: Network, directory: Path, writes: Mapping[str, str], names: str = "abc"
) -> Iterator[NetworkCluster]:
    """Devices that are up, on a database of their own; nothing of them is left afterwards."""
    database = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(network.url, autocommit=True) as connection:
        connection.execute(f"create database {database}")
    cluster = NetworkCluster(directory, database, writes, network)
    try:
        cluster.set_up(list(names))
        for name in names:
            cluster.start(name)
        yield cluster
    finally:
        cluster.close()
        embedded.start(network.postgres)  # where a test left it down
        with psycopg.connect(network.url, autocommit=True) as connection:
            connection.execute(f"drop database if exists {database} with (force)")


@contextmanager
def network(kind: str, directory: Path, names: str = "abc") -> Iterator[Network]:
    """A network of this kind ("" takes the best that works here), gone afterwards."""
    made: Network
    if (kind or best()) == "namespaces":
        made = Namespaces(directory, names)
    else:
        made = Proxies(directory, names)
    try:
        yield made
    finally:
        made.close()


def best() -> str:
    """The kind of network that works here, the silent one where there is a choice."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "proxies"
    try:
        Wires("a").close()
    except subprocess.CalledProcessError:
        return "proxies"  # in a container without the right to make namespaces
    return "namespaces"


# --------------------------------------------------------------------------------------------------- namespaces


class Namespaces(Network):
    """A namespace for each device; routes between them, with PostgreSQL at an address of its own."""

    PORT = 5432

    def __init__(self, directory: Path, names: str) -> None:
        self._wires = Wires(names)
        try:
            super().__init__(directory)
            self._listen()
        except BaseException:
            self.close()
            raise

    def _listen(self) -> None:
        """Have PostgreSQL, which knows only its socket so far, answer at its address as well."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"alter system set listen_addresses = '{self._wires.database}'")
        with (self.postgres / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {self._wires.block} trust\n")
        embedded.stop(self.postgres)
        embedded.start(self.postgres)

    def place(self, device: LoopbackDevice) -> LoopbackDevice:
        device.host = self._wires.address(device.name)
        return device

    def database_of(self, device: str, database: str) -> str:
        return f"postgresql://postgres@{self._wires.database}:{self.PORT}/{database}"

    def peer_url(self, device: LoopbackDevice) -> str:
        return device.url

    def command(self, device: str, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self._wires.namespace(device), *command]

    def cut(self, device: str, *, database: bool = False, peers: bool = False) -> None:
        if database:
            self._wires.drop(device, self._wires.database)
        if peers:
            for peer in self._wires.names:
                if peer != device:
                    self._wires.drop(device, self._wires.address(peer))

    def unplug(self, device: LoopbackDevice) -> None:
        self._wires.drop(device.name, "all")
        self._wires.remove(device.name)

    def lift(self, device: str) -> None:
        self._wires.add(device)
        self._wires.pass_all(device)

    def close(self) -> None:
        self._wires.close()
        super().close()


# ------------------------------------------------------------------------------------------------------ proxies


class Proxies(Network):
    """Proxies on loopback. Clients go past them."""

    def __init__(self, directory: Path, names: str) -> None:
        super().__init__(directory)
        self._names = names
        self._devices: dict[str, LoopbackDevice] = {}
        self._switch: dict[str, _Switch] = {}
        self._database: dict[str, CuttingProxy] = {}
        self._unplugged: set[str] = set()

    def place(self, device: LoopbackDevice) -> LoopbackDevice:
        for old in (self._switch.pop(device.name, None), self._database.pop(device.name, None)):
            if old is not None:
                old.close()
        self._devices[device.name] = device
        self._switch[device.name] = _Switch(device, self._names, self._devices)
        (socket_folder,) = parse_qs(urlsplit(self.url).query)["host"]
        self._database[device.name] = CuttingProxy(Path(socket_folder) / ".s.PGSQL.5432")
        return device

    def database_of(self, device: str, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._database[device].port}/{database}"

    def peer_url(self, device: LoopbackDevice) -> str:
        return f"ssh://git@127.0.0.1:{self._switch[device.name].port}"

    def command(self, device: str, command: list[str]) -> list[str]:
        return command

    def cut(self, device: str, *, database: bool = False, peers: bool = False) -> None:
        if database:
            self._database[device].cut()
        if peers:
            for proxy in self._between(device):
                proxy.cut()

    def unplug(self, device: LoopbackDevice) -> None:
        self._unplugged.add(device.name)
        for proxy in (self._database[device.name], *self._between(device.name)):
            proxy.hang()
        assert device.process is not None
        for pid in [*_descendants(device.process.pid), device.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def lift(self, device: str) -> None:
        unplugged = device in self._unplugged
        self._unplugged.discard(device)
        for proxy in (self._database[device], *self._between(device)):
            if unplugged:  # a device that comes back knows nothing of the connections that it had
                proxy.cut()
            proxy.heal()

    def _between(self, device: str) -> list[CuttingProxy]:
        """The proxies before a device, and those before the others that are for it."""
        others = [name for name in self._switch if name != device]
        return [
            proxy
            for other in others
            for proxy in (self._switch[device].proxies[other], self._switch[other].proxies[device])
        ]

    def close(self) -> None:
        for made in (*self._switch.values(), *self._database.values()):
            made.close()
        super().close()


class _Switch(CuttingProxy):
    """What peers connect to in place of a device: passes each of them on by a proxy of its own.

    Who connects is found in the kernel's tables: the device whose process has that socket; "" for anybody else.
    """

    def __init__(self, device: LoopbackDevice, names: str, devices: Mapping[str, LoopbackDevice]) -> None:
        self.proxies = {name: CuttingProxy((device.host, device.port)) for name in ["", *names]}
        self._devices = devices
        super().__init__((device.host, device.port))

    def target_of(self, client: tuple[str, int]) -> tuple[str, int]:
        return "127.0.0.1", self.proxies[self._who(client)].port

    def _who(self, client: tuple[str, int]) -> str:
        socket = f"socket:[{_inode(client)}]"
        for device in self._devices.values():
            with suppress(OSError):
                for descriptor in Path(f"/proc/{device.pid}/fd").iterdir():
                    with suppress(OSError):
                        if os.readlink(descriptor) == socket:
                            return device.name
        return ""

    def close(self) -> None:
        super().close()
        for proxy in self.proxies.values():
            proxy.close()


def _inode(address: tuple[str, int]) -> str:
    """The number of the socket that is bound to a local address; "" where there is none."""
    port = f":{address[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(port) and words[9] != "0":
            return words[9]
    return ""


def _descendants(pid: int) -> list[int]:
    """Every process that `pid` started, and those that they started."""
    with suppress(FileNotFoundError, ProcessLookupError):
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        return [found for child in children for found in (*_descendants(child), child)]
    return []
