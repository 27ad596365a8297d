"""An asyncio event loop on virtual time: many nodes in one process, the same events in the same order every time.

Nothing here waits for a file descriptor, a thread or the wall clock. The time is a number that moves only when nothing
is left to run, and then straight to the next timer; timers of the same moment fire in the order in which they were
set. Whatever would complete on another thread raises `SimulationError`: it would arrive after an arbitrary number of
virtual seconds, differently on each run.
"""

import asyncio
import heapq
import sys
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from templar_jax.errors import TemplarError

T = TypeVar("T")

CLEANUP_TURNS = 100_000  # of the loop, for tasks that were cancelled when the main coroutine ended


class SimulationError(TemplarError):
    """A simulation that cannot go on: a deadlock, a thread, or a task whose exception nobody looked at."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """A deterministic, single-threaded event loop whose `time()` is virtual seconds since `start`.

    Args:
      start: the first moment, in seconds.
      horizon: a run that reaches this moment ends with a SimulationError (None: none); it catches nodes that poll
        for something that never comes.
    """

    def __init__(self, start: float = 0.0, horizon: float | None = None) -> None:
        self._now = start
        self._horizon = horizon
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._sequence = 0  # breaks ties between timers: first set, first fired
        self._tasks: dict[asyncio.Task[Any], None] = {}  # alive, in order of creation
        self._finished: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()  # failed; perhaps nobody looked
        self._named = 0
        self._failures: list[BaseException] = []
        self._generators: list[weakref.ref[Any]] = []
        self._running = False
        self._closed = False

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by TimerHandle.cancel. Cancelled timers are dropped when they come up, without moving the time."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: object = None, context: Any = None, **options: Any) -> Any:
        self._named += 1  # asyncio's own numbers count through the whole process: not the same in a second run
        task = asyncio.Task(coro, loop=self, name=str(name or f"task-{self._named}"), context=context, **options)
        self._tasks[task] = None
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if _unseen_exception(task):
            self._finished.add(task)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keeps what asyncio would only log; the loop raises it at its next turn."""
        message = context.get("message", "error in a callback")
        error = SimulationError(f"{message}: {context.get('exception')!r} in {_origin(context)}")
        error.__cause__ = context.get("exception")
        self._failures.append(error)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def run_until_complete(self, future: Any) -> Any:
        """Runs the coroutine (task "main") to its end, cancels what is left, and returns its result.

        Raises: the coroutine's own exception, else SimulationError (deadlock, horizon, a failed task nobody awaited).
        """
        if asyncio._get_running_loop() is not None:
            future.close()
            raise SimulationError("a simulation cannot run inside another event loop: call run_virtual outside of it")
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._generator_started, finalizer=self._generator_dropped)
        asyncio._set_running_loop(self)
        self._running = True
        try:
            main = self.create_task(future, name="main")
            try:
                while not main.done():
                    self._turn()
            finally:
                left = self._cancel_all()
            result = main.result()  # the program's own exception before what its end set off
            if left is not None:
                raise left
            self._raise_unseen()
            return result
        finally:
            self._running = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _turn(self) -> None:
        """Everything that is ready now, else the time moves to the next timer."""
        if self._failures:
            raise self._failures.pop(0)
        if not self._ready:
            self._pass_time()
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()  # private by name, yet the one thing that an event loop does with a handle

    def _pass_time(self) -> None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if not self._timers:
            raise SimulationError(
                f"deadlock at {self._now:g} s: nothing is scheduled, yet these tasks wait: {self._waiting()}"
                "; set what they wait for, or give the wait a deadline"
            )
        moment = max(self._now, self._timers[0][0])
        if self._horizon is not None and moment > self._horizon:
            raise SimulationError(f"horizon of {self._horizon:g} s reached while these tasks wait: {self._waiting()}")
        self._now = moment
        while self._timers and self._timers[0][0] <= moment:
            handle = heapq.heappop(self._timers)[2]
            if not handle.cancelled():
                self._ready.append(handle)

    def _waiting(self) -> str:
        return ", ".join(f"{task.get_name()} at {_position(task)}" for task in self._tasks)

    def _cancel_all(self) -> SimulationError | None:
        """Ends every task and generator, in order of creation; returns the first thing that went wrong."""
        for task in list(self._tasks):
            task.cancel()
        for reference in self._generators:
            if (generator := reference()) is not None:
                self.create_task(generator.aclose(), name="aclose")
        first = None
        for _ in range(CLEANUP_TURNS):
            if not self._tasks:
                return first
            try:
                self._turn()
            except SimulationError as error:
                first = first or error
                if not self._ready:  # a deadlock: turning on is of no use
                    return first
        return first or SimulationError(f"these tasks go on after they were cancelled: {self._waiting()}")

    def _raise_unseen(self) -> None:
        """A task may fail while its creator still holds it and never looks: at the end that is an error too."""
        if self._failures:
            raise self._failures.pop(0)
        unseen = [task for task in self._finished if _unseen_exception(task)]
        for task in sorted(unseen, key=lambda task: task.get_name()):
            error = task.exception()
            raise SimulationError(f"task {task.get_name()} failed and nobody awaited it: {error!r}") from error

    def _generator_started(self, generator: Any) -> None:
        self._generators = [reference for reference in self._generators if reference() is not None]
        self._generators.append(weakref.ref(generator))

    def _generator_dropped(self, generator: Any) -> None:
        self.create_task(generator.aclose(), name="aclose")

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do: `run_until_complete` closes them."""

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, context: Any = None) -> NoReturn:
        error = SimulationError(
            f"a thread completed something ({callback!r}): in a simulation nothing may run on another thread; "
            "use the simulated bucket, LocalChain in memory and VirtualClock.spend"
        )
        self._failures.append(error)  # raised in that thread it might never be seen
        raise error

    def run_in_executor(self, executor: Any, func: Callable[..., object], *args: Any) -> NoReturn:
        raise SimulationError(f"{func!r} was sent to a thread: in a simulation work runs inline, use clock.spend")


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refuse(self: VirtualLoop, *args: object, **kwargs: object) -> NoReturn:
        raise SimulationError(f"{name} needs the outside world: a simulation has no sockets, signals or subprocesses")

    return refuse


# The rest of asyncio's interface would raise a bare NotImplementedError.
for _name in (
    *("add_reader", "add_writer", "add_signal_handler", "getaddrinfo", "sock_recv", "sock_sendall", "sock_connect"),
    *("create_connection", "create_server", "create_unix_connection", "create_datagram_endpoint"),
    *("subprocess_exec", "subprocess_shell", "connect_read_pipe", "connect_write_pipe"),
):
    setattr(VirtualLoop, _name, _refuse(_name))


def _unseen_exception(task: asyncio.Task[Any]) -> bool:
    """True if the task failed and nothing has read its exception yet (what asyncio logs when it is collected)."""
    return not task.cancelled() and bool(getattr(task, "_log_traceback", False))


def _origin(context: dict[str, Any]) -> str:
    task = context.get("task") or context.get("future")
    return f"task {task.get_name()}" if isinstance(task, asyncio.Task) else repr(context.get("handle"))


def _position(task: asyncio.Task[Any]) -> str:
    """File and line at which the task's innermost coroutine is suspended."""
    coroutine: Any = task.get_coro()
    while hasattr(getattr(coroutine, "cr_await", None), "cr_frame"):
        coroutine = coroutine.cr_await
    frame = getattr(coroutine, "cr_frame", None)
    return f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}" if frame else "its start"


class VirtualClock:
    """templar_jax.clock.Clock on a VirtualLoop; made inside the simulation, one for each node.

    Args:
      node: whose clock it is, for reports.
      speed: of the node's hardware: modelled seconds are divided by it.
    `phases` sums the virtual seconds that `spend` passed, by phase.
    """

    def __init__(self, node: str = "", speed: float = 1.0) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise SimulationError("a VirtualClock needs a VirtualLoop: start the program with run_virtual")
        self._loop = loop
        self.node = node
        self.speed = speed
        self.phases: dict[str, float] = {}

    def time(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def spend(self, phase: str, modelled_seconds: float, work: Callable[[], T]) -> T:
        """Runs `work` at once, then passes `modelled_seconds / speed`; if it raises, no time passes."""
        result = work()
        seconds = max(0.0, modelled_seconds) / self.speed
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds
        await asyncio.sleep(seconds)
        return result


def run_virtual(main: Callable[[], Coroutine[Any, Any, T]], *, start: float = 0.0, horizon: float | None = None) -> T:
    """Runs `main()` on a fresh VirtualLoop (see there for `start` and `horizon`) and returns its result."""
    loop = VirtualLoop(start, horizon)
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()
