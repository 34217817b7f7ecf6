"""The processes of a pool: started, killed and sent to as it wants. What happens to them comes back as events.

Lives in the supervisor's thread, and decides nothing: that is `prefork.pool.state`.
"""

from __future__ import annotations

import socket
from dataclasses import replace

from prefork.memory.observation import ZYGOTE
from prefork.pool import actions
from prefork.pool.server_processes import ServerProcesses
from prefork.pool.watch import EXIT_SECONDS, Watch
from prefork.pool.worker_processes import WorkerProcesses
from prefork.wire.memory_file import MemoryFile, remove_abandoned_memory
from prefork.wire.messages import ConnectWorker
from prefork.wire.specification import Specification

_LOOK_SECONDS = 0.5


class Processes:
    """All of them, and the arena's file."""

    def __init__(self, watch: Watch) -> None:
        remove_abandoned_memory()
        self.workers = WorkerProcesses(watch)
        self.servers = ServerProcesses(watch)
        self._watch = watch
        self._arena: MemoryFile | None = None
        self._looked = 0.0  # for those who have exited without a word

    def do(self, action: actions.Action) -> None:  # noqa: PLR0912, PLR0915  a case for each action
        workers, servers, reporter = self.workers, self.servers, self._watch.reporter
        match action:
            case actions.SendCalls():  # first the most frequent ones
                workers.send_calls(action)
            case actions.Complete():
                action.complete()
                if action.task.name == "call":
                    workers.end_call(action.task.arguments[0])
            case actions.PassOn(task, thing, yielded):
                call = task.arguments[0]
                (call.take_yielded if yielded else call.take_report)(thing)
            case actions.TakeCallsBack(number):
                workers.take_calls_back(number)
            case actions.SendWorker(number, message):
                if workers.has(number):
                    workers.send(number, self._name_arena(message) if isinstance(message, Specification) else message)
            case actions.StartZygote():
                workers.start_zygote(replace(action, specification=self._name_arena(action.specification)))
            case actions.EndZygote(generation):
                workers.end_zygote(generation, EXIT_SECONDS)
            case actions.KillZygote(generation):
                if (zygote := workers.zygotes.get(generation)) is not None:
                    zygote.kill()
            case actions.SendZygote(message, generation):
                if (zygote := workers.zygotes.get(generation)) is not None:
                    self._watch.post(zygote.channel, message)
            case actions.Fork():
                workers.fork(action)
            case actions.Spawn():
                workers.spawn(action)
            case actions.KillSpawned(number):
                workers.kill_spawned(number)
            case actions.InterruptSpawned(number):
                workers.interrupt_spawned(number)
            case actions.StartServer():
                servers.start_server(action)
            case actions.SendServer(place, message):
                servers.send(place, message)
            case actions.Connect():
                self._connect(action)
            case actions.KillServer(place):
                servers.kill_server(place)
            case actions.EndServers(idle):
                servers.end_servers(idle)
            case actions.StartOwners():
                assert self._arena is not None
                servers.start_owners(action, self._arena.path)
            case actions.EndOwners():
                servers.end_owners()
            case actions.OpenArena():
                self._arena = self._arena or MemoryFile()
            case actions.CloseArena():
                self._close_arena()
            case actions.Announce():
                reporter.announce()
            case actions.Interrupt():
                reporter.interrupt()
            case actions.Notify(text):
                reporter.notify(text)
            case actions.LogText(text):
                reporter.log(text)

    def reap(self, now: float) -> None:
        """Looks who has exited."""
        self.workers.reap()
        if now - self._looked > _LOOK_SECONDS:
            self._looked = now
            self.workers.notice_deaths()
            self.servers.notice_deaths()

    def list_pids(self) -> dict[str, int]:
        """Of all processes that are not about to end, by name."""
        workers = [w for w in self._watch.pool.workers.all.copy().values() if w.pid and w.killed is None]
        pids = {worker.name: worker.pid for worker in workers} | self.servers.list_pids()
        current = self._watch.pool.workers.generation
        zygotes = {
            ZYGOTE if generation == current else f"{ZYGOTE} {generation}": zygote.pid
            for generation, zygote in self.workers.zygotes.copy().items()
            if not zygote.is_killed
        }
        return pids | zygotes

    def end(self, at_once: bool) -> None:
        """Ends every process."""
        self.workers.end(at_once)
        servers = self._watch.pool.models.servers
        self.servers.end_servers(servers.list_idle() if servers is not None else frozenset())
        self.servers.end_owners()
        self._close_arena()

    def _name_arena(self, specification: Specification) -> Specification:
        return replace(specification, arena=self._arena.path if self._arena else None)

    def _close_arena(self) -> None:
        arena, self._arena = self._arena, None
        if arena is not None:
            arena.close()

    def _connect(self, action: actions.Connect) -> None:
        """A worker with a server, by a pair of sockets."""
        if self.workers.has(action.number):
            here, there = socket.socketpair()
            self.servers.send(action.place, ConnectWorker(action.number), (here.detach(),))
            self.workers.send(action.number, action.message, (there.detach(),))
