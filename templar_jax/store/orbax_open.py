"""Orbax's checkpointers, for one process or for those of several hosts. Slow to import, so only where they are made."""

import logging
from typing import Any


def make_checkpointer(processes: set[int]) -> Any:
    """That `processes` use together, the first of them writing what is common."""
    # Orbax tells the user about itself, at length; what goes wrong is raised to the caller, too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    import orbax.checkpoint as ocp

    among = ocp.options.MultiprocessingOptions(primary_host=min(processes), active_processes=processes)
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=among))
    return ocp.AsyncCheckpointer(handler, multiprocessing_options=among)


def make_array_reader(index: int) -> Any:
    """That reads single arrays of an item, in this process alone."""
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
