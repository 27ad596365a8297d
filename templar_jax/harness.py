"""lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) on a Hugging Face folder.

It is not among this project's dependencies: it brings torch and transformers, and only who evaluates needs it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from templar_jax.errors import ConfigError, DataError, line_of

INSTALL = "pip install 'lm_eval[hf]'"


@dataclass(frozen=True)
class Harness:
    """What the harness found. `results`: task -> "metric,filter" -> value, as it names them; `table`: for people."""

    results: dict[str, dict[str, Any]]
    table: str


def check_harness() -> None:
    """Raises ConfigError unless the harness and what its transformers models need can be imported."""
    try:
        import lm_eval.models.huggingface  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f"lm-evaluation-harness cannot be imported ({error}): {INSTALL}") from error


def run_harness(folder: Path, tasks: list[str], *, dtype: str, batch: int, include: Path | None, limit: int) -> Harness:
    """Evaluates the model in `folder` on torch's device, a GPU where torch sees one.

    Args:
      tasks: names of tasks or groups, wildcards allowed.
      dtype: "float32" or "bfloat16", of weights and activations.
      batch: sequences at once.
      include: a folder of further tasks, in the harness's YAML format. limit: documents of each task; 0: all.

    Raises:
      ConfigError: the harness is not installed, or does not know a task. DataError: it failed.
    """
    check_harness()
    import torch  # pyright: ignore[reportMissingImports]
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

    manager = TaskManager(include_path=str(include) if include else None)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise ConfigError(f"the harness has no task {task}: `lm_eval ls tasks` lists them, --include adds a folder")
    settings = {"pretrained": str(folder), "dtype": dtype}
    device = "cuda" if torch.cuda.is_available() else "cpu"  # left out, the harness takes a GPU for granted
    try:
        found: Any = simple_evaluate(
            "hf", settings, manager.match_tasks(tasks), batch_size=batch, device=device, limit=limit or None,
            task_manager=manager, log_samples=False,
        )  # fmt: skip
    except Exception as error:  # of somebody else's tasks and data sets, which may fail in any way
        what = f"{type(error).__name__}: {line_of(error)}"
        raise DataError(f"the harness failed on {','.join(tasks)} ({what})") from error
    return Harness(found["results"], make_table(found))
