"""The daemon: wiring, life and death. The only process that sees a key or mints.

It listens before httpx and cryptography are imported, which takes longer than all else together, and imports them
while the first request waits for nothing else.
"""

import argparse
import asyncio
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ghapp import activation, autostart, config, logs, paths, process
from ghapp.audit import Audit
from ghapp.broker import Broker
from ghapp.clock import SystemClock
from ghapp.control import ControlServer
from ghapp.errors import GhappError
from ghapp.lending import Lending
from ghapp.listener import MAX_CONNECTIONS, Listener
from ghapp.methods import Methods
from ghapp.outside import Outside
from ghapp.protocols import Clock
from ghapp.server import VERSION, GitServer, Source
from ghapp.upgrade import Installation as InstalledPackage
from ghapp.watchdog import Watchdog


if TYPE_CHECKING:
    from socket import socket


log = logging.getLogger("ghapp.daemon")  # by name: run as a module, ours is __main__

GRACE = 2.0  # seconds for requests in flight when we are told to end
START_LIMIT = 15.0  # seconds until we listen; the lock is waited for up to 10, and starters give up after 20
BLOCKING_THREADS = 4


class Threads(ThreadPoolExecutor):
    """The loop's own threads, for name resolution and imports: whoever hangs there does not keep us from ending."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002  # as the base
        """Let go of the threads, and wait for none."""
        super().shutdown(wait=False, cancel_futures=True)


class Daemon:
    """One daemon: its listeners, its broker, its configuration."""

    def __init__(
        self,
        directory: str,
        clock: Clock,
        *,
        lock: int | None = None,
        package: str = "ghapp",
        sockets: "Mapping[str, socket] | None" = None,
        notify: activation.Notify = activation.silent,
    ) -> None:
        self._clock = clock
        self._directory = directory
        self._lock = lock
        self._sockets = sockets or {}
        self._notify = notify
        self._started = clock.boot()
        self._last_activity = self._started
        self._audit = Audit(config.state_dir(), clock)
        self._broker = Broker(clock, recorder=self._audit)
        self._outside = Outside(self._broker, clock)
        self._leaving = False
        self._ending = asyncio.Event()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._package = InstalledPackage(package)
        self._watchdog = Watchdog(self._is_busy, logs.descriptor)
        self._lending = Lending(
            directory,
            self._broker,
            clock,
            lambda source, grant: self._git_server(source, grant).handle,
            self._audit,
            on_activity=self._note_activity,
        )
        git = self._git_server(self._broker)
        methods = Methods(
            self._broker,
            self._lending,
            self._outside,
            self._audit,
            clock,
            listeners=lambda: self._all_listeners,
            reload=self._read_config,
        )
        control = ControlServer(
            methods.by_name() | {"stop": self._stop},
            on_error=self._note_error,
            called_by=self._audit.called_by,
        )
        clients = min(MAX_CONNECTIONS, process.connection_budget())
        for_control = max(2, clients // 4)  # git's clients must not keep the command line out
        self._listeners = [
            Listener(f"{directory}/{name}", handle, on_activity=self._note_activity, most=most)
            for name, handle, most in (
                ("git.sock", git.handle, clients - for_control),
                ("control.sock", control.handle, for_control),
            )
        ]

    def _git_server(self, source: Source, grant: str | None = None) -> GitServer:
        return GitServer(
            source,
            hosts=lambda: {app.host for app in self._outside.config.apps},
            ready=self._outside.wait_until_ready,
            quit_on_error=lambda: self._outside.config.quit_on_error,
            # Nobody in a container starts the one that would follow; whoever asks on git.sock does.
            on_error=self._note_error if grant is None else lambda _: None,
            audit=self._audit,
            grant=grant,
        )

    @property
    def _all_listeners(self) -> list[Listener]:
        return [*self._listeners, *self._lending.listeners]

    async def run(self, report: Callable[[], None]) -> None:
        """Serve until told to end; `report` is called when the sockets listen. Raises `GhappError` before that."""
        self._outside.use(config.load(config.config_file()))
        loop = asyncio.get_running_loop()
        loop.set_default_executor(Threads(BLOCKING_THREADS, thread_name_prefix="blocking"))
        try:
            for name, listener in zip(activation.NAMES, self._listeners, strict=True):
                if name in self._sockets:
                    listener.adopt(self._sockets[name])
                else:
                    listener.open()
            self._lending.restore()
        except BaseException:
            self._leave()
            raise
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loop.add_signal_handler(signal.SIGUSR1, self._outside.forget_keys)
        if self._lock is not None:
            process.mark_serving(self._lock)
        self._watchdog.watch()
        report()
        self._notify("READY=1")
        log.info("ghapp %s serves, pid %d", VERSION, os.getpid())
        imports = asyncio.create_task(self._import())
        self._watch_idleness()
        try:
            await self._ending.wait()
            self._watchdog.watch()  # an end that hangs would keep the lock
            self._leave()
            await self._end(imports)
        finally:
            self._watchdog.stop()

    def _leave(self) -> None:
        """Let nobody in any more; a starter that finds our lock taken waits for us from now on."""
        if not self._leaving:
            self._notify("STOPPING=1")
        self._leaving = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._lock is not None:
            process.mark_unreachable(self._lock)
        for listener in self._listeners:
            listener.stop_accepting()
        self._lending.stop_accepting()

    async def _end(self, imports: asyncio.Task[None]) -> None:
        await asyncio.gather(*(listener.drain(GRACE) for listener in self._all_listeners))
        await self._lending.aclose(GRACE)
        imports.cancel()
        await asyncio.gather(imports, return_exceptions=True)
        await self._outside.aclose(GRACE)
        await asyncio.to_thread(self._audit.close)
        log.info("ended")

    async def _import(self) -> None:
        if not await self._outside.load():
            self._ending.set()  # an upgrade under way, most likely: the next one is whole

    # -- life ----------------------------------------------------------------------------------------------------

    def _is_busy(self) -> bool:
        return self._broker.flights > 0 or any(listener.busy for listener in self._all_listeners)

    def _is_irreplaceable(self) -> bool:
        """Tell whether a daemon after us could not go on: nobody in a container starts it, and what we owe it forgets.

        Nor would it be locked.
        """
        return self._broker.locked or len(self._lending) > 0 or self._lending.owes

    def _note_activity(self) -> None:
        self._watchdog.watch()
        self._last_activity = self._clock.boot()
        self._mend_sockets()
        if self._ending.is_set() or self._broker.locked or len(self._lending):
            return
        if (successor := self._package.successor()) and not self._is_irreplaceable():
            log.info("ghapp %s was installed; the next request starts it", successor)
            self._ending.set()

    def _note_error(self, error: GhappError) -> None:
        if error.inherited and not self._ending.is_set() and not self._broker.locked:
            log.info("the environment that we were started in does not serve any more (%s)", error.code)
            self._ending.set()

    def _watch_idleness(self) -> None:
        """End when nothing was asked for the configured time; looked at when that time could be over, no earlier."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        limit = self._outside.config.idle_timeout
        if limit <= 0 or self._leaving:
            return
        self._watchdog.watch()
        self._mend_sockets()
        if self._ending.is_set():
            return
        left = self._last_activity + limit - self._clock.boot()
        needed = self._is_irreplaceable() or any(each.connections for each in self._listeners)
        if left <= 0 and not needed:
            log.info("idle for %.0f s", limit)
            self._ending.set()
            return
        # With somebody here the time begins anew when they leave.
        self._idle_timer = asyncio.get_running_loop().call_later(left if left > 0 else limit, self._watch_idleness)

    def _on_hangup(self) -> None:
        """Make sockets anew that are gone or somebody else's, and read the configuration again."""
        if self._leaving:
            return  # a socket made now would be a dead one soon
        self._watchdog.watch()  # the configuration may lie on a disk that does not answer
        self._mend_sockets()
        if self._ending.is_set():
            return
        self._notify(activation.reloading())
        try:
            self._read_config()
        except GhappError as error:
            log.error("the old configuration stays: %s", error)  # noqa: TRY400  # as above
        self._notify("READY=1")

    def _mend_sockets(self) -> None:
        """Take our paths again, or end if they are another daemon's; looked at whenever we wake for something else."""
        if self._lock is not None and not self._leaving and not process.owns(self._lock, self._directory):
            log.info("the lock of %s is not ours any more", self._directory)
            self._ending.set()
            return
        if not self._leaving and any(listener.is_replaced() for listener in self._listeners):
            log.info("systemd listens anew in %s", self._directory)
            self._ending.set()
            return
        for listener in self._listeners:
            if not self._leaving and not listener.is_in_place():
                listener.stop_accepting()
                try:
                    if not process.free_path(listener.path):
                        log.info("somebody else listens at %s", listener.path)  # systemd: the next client starts it
                        self._ending.set()
                        return
                    listener.open()
                except (GhappError, OSError) as error:
                    log.error("cannot listen: %s", error)  # noqa: TRY400  # as above
        if not self._leaving:
            self._lending.mend()

    def _read_config(self) -> None:
        self._outside.use(config.load(config.config_file()))
        self._watch_idleness()

    async def _stop(self, revoke: bool = True) -> dict[str, int]:  # noqa: FBT001, FBT002  # as above
        """End after answering; the tokens we gave out end too, unless another daemon is to follow.

        First nobody comes in any more and git gets its answers: what is minted for them now is to end as well.
        """
        self._leave()
        for_git = [self._listeners[0], *self._lending.listeners]
        await asyncio.gather(*(listener.drain(GRACE) for listener in for_git))
        if not revoke:
            await self._lending.end_what_stays_away()
        dead, alive = await self._broker.lock(revoke=True) if revoke else (0, 0)
        asyncio.get_running_loop().call_soon(self._ending.set)
        return {"pid": os.getpid(), "revoked": dead, "not_revoked": alive}


def serve(directory: str, report: Callable[[str], None]) -> int:
    """Take the lock and serve; `report` hears "" once the sockets listen, or why they cannot."""
    lock = None
    try:
        notify, sockets = activation.take_notify(os.environ), activation.take_sockets(os.environ)
        autostart.make_runtime_dir(directory)
        lock = process.take_lock(directory, activated=bool(sockets))
        if lock is None:
            log.info("another daemon serves already")
            report("")  # another daemon serves, which is all that a starter wants
            return 0
        for name in activation.NAMES:
            if name not in sockets:  # nobody else is there, and we would wait for our own answer
                process.free_path(f"{directory}/{name}.sock")
        daemon = Daemon(directory, SystemClock(), lock=lock, sockets=sockets, notify=notify)
        asyncio.run(daemon.run(lambda: report("")))
    except GhappError as error:
        report(f"{error}\n{error.hint}")
        return 1
    except OSError as error:
        text = f"cannot start in {directory}: {error.strerror} (E41)" if error.strerror else str(error.args[-1])
        report(text)
        return 1
    finally:
        faulthandler.cancel_dump_traceback_later()
        if lock is not None:
            os.close(lock)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon: detached for `ghapp.autostart`, or in the foreground."""
    parser = argparse.ArgumentParser(prog="ghapp.daemon")
    parser.add_argument("--detach", action="store_true")
    detached = parser.parse_args(arguments).detach
    process.sanitise_descriptors()
    process.harden()
    report: Callable[[str], None] = process.detach() if detached else _report_in_the_foreground
    # Who hangs while it starts, on a disk that does not answer, holds the lock without a pid: nobody could end it.
    faulthandler.dump_traceback_later(START_LIMIT, exit=True, file=2)
    level = logging.DEBUG if os.environ.get("GHAPP_DEBUG") else logging.INFO
    logs.configure(config.state_dir() if detached else None, level)
    logs.install_hooks()
    return serve(paths.runtime_dir(), report)


def _report_in_the_foreground(problem: str) -> None:
    if problem:
        error, _, hint = problem.partition("\n")
        sys.stderr.write(f"ghapp: error: {error}\n")
        if hint:
            sys.stderr.write(f"ghapp: hint: {hint}\n")


if __name__ == "__main__":
    process.leave(main())
