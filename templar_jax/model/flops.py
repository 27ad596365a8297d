"""Model FLOPs: what the mathematics needs, not what a program spends (no remat, nothing masked is counted).

Convention of PaLM (https://arxiv.org/abs/2204.02311, appendix B), with causal attention at half the score matrix. Of a
mixture of experts a token is charged for the experts that it is sent to, not for all.
"""

from templar_jax.config import ModelConfig


def parameters(model: ModelConfig) -> int:
    """Number of parameters, embeddings and norms included."""
    idle = (model.experts - model.experts_per_token) * _expert(model) if model.experts else 0
    return active_parameters(model) + model.layers * idle


def active_parameters(model: ModelConfig) -> int:
    """Number of parameters that a token meets: all of a dense model."""
    norms = (2 * model.layers + 1) * model.dim
    return matmul_parameters(model) + norms + (0 if model.tied else model.vocab * model.dim)


def matmul_parameters(model: ModelConfig) -> int:
    """Parameters that every token is multiplied with: its layers' matrices and the head (not the lookup)."""
    attention = 2 * model.dim * (model.heads + model.kv_heads) * model.head_dim
    feed_forward = 3 * model.dim * model.ffn_dim
    if model.experts:
        feed_forward += model.dim * model.experts + model.experts_per_token * _expert(model)
    return model.layers * (attention + feed_forward) + model.dim * model.vocab


def _expert(model: ModelConfig) -> int:
    return 3 * model.dim * model.expert_ffn_dim


def forward_flops_per_token(model: ModelConfig, sequence: int) -> float:
    """FLOPs of one token's forward pass at this sequence length; a multiply-add counts two."""
    pairs = (sequence + 1) / 2  # keys that the mean query sees
    attention = 4 * model.layers * model.heads * model.head_dim * pairs
    return 2 * matmul_parameters(model) + attention


def train_flops_per_token(model: ModelConfig, sequence: int) -> float:
    """FLOPs of one token's forward and backward pass (twice the forward's)."""
    return 3 * forward_flops_per_token(model, sequence)
