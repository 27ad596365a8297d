"""Plain lines for a log or a pipe: every event that says something new, and a step line every few seconds."""

import time as wall
from typing import TextIO

from templar_jax.telemetry.events import Event, StepDone
from templar_jax.telemetry.text import line


class PlainLines:
    """Writes one line an event. Of the inner steps it shows a window's first, and then one each `every` seconds."""

    def __init__(self, stream: TextIO, every: float = 10.0, clock_is_wall: bool = True) -> None:
        self._stream = stream
        self._every = every
        self._wall = clock_is_wall
        self._window = -1
        self._last = float("-inf")

    def emit(self, event: Event, time: float) -> None:
        if isinstance(event, StepDone):
            if event.window == self._window and time - self._last < self._every:
                return
            self._window, self._last = event.window, time
        text = line(event)
        if text is not None:
            stamp = wall.strftime("%H:%M:%S", wall.localtime(time)) if self._wall else f"{time:9.1f}"
            self._stream.write(f"{stamp}  {text}\n")
            self._stream.flush()

    def close(self) -> None:
        self._stream.flush()
