"""Shows what `prepare` is at: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from templar_jax.data.prepare import Progress, Show

UNITS = {"tokenise": "shards tokenised", "write": "pages written"}


@contextmanager
def shown(console: Console) -> Iterator[Show]:
    """Gives the function to hand to `prepare` as `progress`."""
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console) as bars:
        tasks = {}

        def show(step: Progress) -> None:
            if not step.total:
                bars.console.print(step.note, markup=False, highlight=False)
                return
            if step.phase not in tasks:
                tasks[step.phase] = bars.add_task(UNITS[step.phase])
            bars.update(tasks[step.phase], completed=step.done, total=step.total)

        yield show


def _lines() -> Show:
    """One line for each remark and each hundredth of the work, at once."""
    last = {}

    def show(step: Progress) -> None:
        hundredth = step.done * 100 // step.total if step.total else None
        if hundredth is None or last.get(step.phase) != hundredth:
            last[step.phase] = hundredth
            print(step.note or f"{step.done} of {step.total} {UNITS[step.phase]}", flush=True)

    return show
