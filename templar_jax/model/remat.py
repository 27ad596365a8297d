"""What of a layer's forward pass is kept for its backward pass, by the names of `compute.remat`.

| policy | kept beside each layer's input | computed again |
|---|---|---|
| none | everything | nothing |
| full | nothing | the whole layer |
| save-names | the activations of NAMES, on the device | norms, rotations, attention, products; no matmul of a weight |
| offload-names | the same, in pinned host memory | the same |
"""

from collections.abc import Callable

import jax

# With these at hand no product with a weight is computed twice: projections, and the residual stream after attention.
NAMES = ("queries", "keys", "values", "after_attention", "gate", "up")


def rematerialized(layer: Callable, policy: str) -> Callable:
    """`layer` for the body of a scan, under the policy of that name."""
    policies = jax.checkpoint_policies
    if policy == "none":
        return layer
    if policy == "full":
        chosen = policies.nothing_saveable
    elif policy == "save-names":
        chosen = policies.save_only_these_names(*NAMES)
    else:
        chosen = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(NAMES),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return jax.checkpoint(layer, policy=chosen, prevent_cse=False)
