"""Llama in plain NumPy (f64), written from the formulas and from nothing else in this project.

Weights come under their Hugging Face names and orientation ([out, in]), as in a published checkpoint.
"""

import numpy as np


def _norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def _rotate(x, theta):
    """x [S, heads, H]: the pair (i, i + H/2) turns by position * theta^(-2i/H)."""
    s, _, h = x.shape
    out = np.empty_like(x)
    for i in range(h // 2):
        angle = np.arange(s) * theta ** (-2 * i / h)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        out[:, :, i] = x[:, :, i] * cos - x[:, :, i + h // 2] * sin
        out[:, :, i + h // 2] = x[:, :, i + h // 2] * cos + x[:, :, i] * sin
    return out


def logits(weights, model, tokens):
    """[S, V] logits of one sequence of token ids."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    x = w["model.embed_tokens.weight"][tokens]
    s = len(tokens)
    for layer in range(model.layers):
        at = f"model.layers.{layer}."
        h = _norm(x, w[at + "input_layernorm.weight"], model.norm_eps)
        q, k, v = (
            (h @ w[at + f"self_attn.{n}_proj.weight"].T).reshape(s, heads, model.head_dim)
            for n, heads in (("q", model.heads), ("k", model.kv_heads), ("v", model.kv_heads))
        )
        q, k = _rotate(q, model.rope_theta), _rotate(k, model.rope_theta)
        heads = []
        for n in range(model.heads):
            of = n // (model.heads // model.kv_heads)
            scores = q[:, n] @ k[:, of].T / np.sqrt(model.head_dim)
            scores = np.where(np.tril(np.ones((s, s), bool)), scores, -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(p / p.sum(-1, keepdims=True) @ v[:, of])
        x = x + np.concatenate(heads, -1) @ w[at + "self_attn.o_proj.weight"].T
        h = _norm(x, w[at + "post_attention_layernorm.weight"], model.norm_eps)
        gate = h @ w[at + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[at + "mlp.up_proj.weight"].T)) @ w[at + "mlp.down_proj.weight"].T
    x = _norm(x, w["model.norm.weight"], model.norm_eps)
    head = w["model.embed_tokens.weight"] if model.tied else w["lm_head.weight"]
    return x @ head.T


def nats(weights, model, tokens):
    """Nats of each of the S - 1 predicted tokens."""
    z = logits(weights, model, tokens)[:-1]
    z = z - z.max(-1, keepdims=True)
    return np.log(np.exp(z).sum(-1)) - z[np.arange(len(tokens) - 1), tokens[1:]]
