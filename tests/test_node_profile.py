"""The trace of one window."""

import jax
import jax.numpy as jnp

from templar_jax.config import NodeConfig
from templar_jax.node.profile import profiled, trace_folder


def test_a_trace_of_the_window_that_was_asked_for(tmp_path):
    config, said = NodeConfig(home=str(tmp_path), profile_window=7), []
    for window in (6, 7, 8):
        with profiled(config, "0123456789", window, said.append):
            jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((64, 64))))
    traces = list(tmp_path.rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000
    assert trace_folder(config, "0123456789", 7) in traces[0].parents
    assert [event.text for event in said] == [f"trace of window 7: tensorboard --logdir {traces[0].parents[3]}"]
