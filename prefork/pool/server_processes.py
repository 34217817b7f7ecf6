"""The model servers of a pool, and the owners of its weights on GPUs, as processes: started, listened to, ended."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prefork.pool import actions
from prefork.pool.events import OwnerExited, OwnerSent, ServerExited, ServerSent
from prefork.pool.watch import EXIT_SECONDS, Watch
from prefork.wire.child import ChildProcess
from prefork.wire.environment import make_environment
from prefork.wire.messages import (
    ConnectWorker,
    DecideBatch,
    DisconnectWorker,
    FromServer,
)
from prefork.wire.owner_messages import FromOwner, UploadWeights

# OpenMP's threads wait for the next product by turning round and round, on the cores that the workers want: on two of
# them a server was three times slower at times, and one and a half times as fast with this.
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


class ServerProcesses:
    """By the place of their device, among those of the plan."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._servers: dict[int, tuple[str, ChildProcess]] = {}  # with their names
        self._owners: dict[int, tuple[str, ChildProcess]] = {}

    def list_pids(self) -> dict[str, int]:
        """Of those that are not about to end."""
        children = [*self._servers.values(), *self._owners.values()]
        return {name: child.pid for name, child in children if not child.is_killed}

    # -- the servers -------------------------------------------------------------------------------------------

    def start_server(self, action: actions.StartServer) -> None:
        environment = {**make_environment(action.plan), **_WAITING}
        if action.device:
            environment["CUDA_VISIBLE_DEVICES"] = action.device
        child = ChildProcess("work.server", environment, self._watch.reporter.inherits_stdout)
        self._servers[action.place] = (action.name, child)
        self._watch.watch(child, partial(self._read_server, action.place, child))
        self._watch.post(child.channel, action.order)

    def _read_server(self, place: int, child: ChildProcess) -> None:
        def take(message: FromServer, _: Sequence[int]) -> None:
            self._watch.feed(ServerSent(place, message))

        self._watch.read(child.channel, take, partial(self._lose_server, place, child))

    def _lose_server(self, place: int, child: ChildProcess) -> None:
        tail = self._watch.read_stderr(child.stderr, child.stderr_tail)
        servers = self._watch.pool.models.servers
        if servers is None or self._servers.pop(place, None) is None:
            return
        server = servers.all[place]
        status = self._watch.end(child, EXIT_SECONDS if server.inventory else 0.0)
        out_of_memory = self._watch.was_out_of_memory(status, server.kill_reason)
        self._watch.feed(ServerExited(place, child.pid, status, out_of_memory, tail))

    def notice_deaths(self) -> None:
        """Of those whose channel does not say so, because a child of theirs has it open too."""
        for place, (_, child) in list(self._servers.items()):
            if child.poll() is not None:
                self._read_server(place, child)  # what it has sent before
                self._lose_server(place, child)
        for place, (_, child) in list(self._owners.items()):
            if child.poll() is not None:
                self._read_owner(place, child)
                self._lose_owner(place, child)

    def send(
        self, place: int, message: DecideBatch | DisconnectWorker | ConnectWorker, fds: tuple[int, ...] = ()
    ) -> None:
        """If it is still there."""
        if place in self._servers:
            self._watch.post(self._servers[place][1].channel, message, fds)

    def kill_server(self, place: int) -> None:
        if place in self._servers:
            self._servers[place][1].kill()

    def end_servers(self, idle: frozenset[int]) -> None:
        servers, self._servers = self._servers, {}
        for place, (_, child) in servers.items():
            self._watch.loop.ignore(child.channel)
            child.channel.close()  # so that all of them end at once
            if place not in idle:
                child.kill()
        for _, child in servers.values():
            self._watch.end(child, EXIT_SECONDS)

    # -- the owners of weights on GPUs -------------------------------------------------------------------------

    def start_owners(self, action: actions.StartOwners, path: str) -> None:
        plan = action.plan
        order = UploadWeights(path, action.size, "cuda" if plan.device == "cuda" else "host")
        devices = plan.devices or ("",)
        for place, device in enumerate(devices):
            child = ChildProcess("work.owner", {**make_environment(plan), "CUDA_VISIBLE_DEVICES": device})
            self._owners[place] = (f"owner {place}" if len(devices) > 1 else "owner", child)
            self._watch.watch(child, partial(self._read_owner, place, child))
            self._watch.post(child.channel, order)

    def _read_owner(self, place: int, child: ChildProcess) -> None:
        def take(message: FromOwner, _: Sequence[int]) -> None:
            self._watch.feed(OwnerSent(place, message))

        self._watch.read(
            child.channel, take, partial(self._lose_owner, place, child), is_wanted=lambda: place in self._owners
        )

    def _lose_owner(self, place: int, child: ChildProcess) -> None:
        if (owner := self._owners.pop(place, None)) is not None:
            status = self._watch.end(child, EXIT_SECONDS)
            self._watch.feed(OwnerExited(place, owner[0], child.pid, status))

    def end_owners(self) -> None:
        """Once nobody reads any more."""
        owners, self._owners = self._owners, {}
        for _, child in owners.values():
            self._watch.end(child, EXIT_SECONDS)
