"""The same inner step in plain eager torch: what a good torch programmer writes without a compiler."""

# pyright: reportMissingImports=false
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from templar_jax.config import MeshConfig, ModelConfig, RunConfig


class Layer(nn.Module):
    def __init__(self, m: ModelConfig):
        super().__init__()
        self.m = m
        self.attn_norm, self.mlp_norm = nn.RMSNorm(m.dim, m.norm_eps), nn.RMSNorm(m.dim, m.norm_eps)
        self.q = nn.Linear(m.dim, m.heads * m.head_dim, bias=False)
        self.k = nn.Linear(m.dim, m.kv_heads * m.head_dim, bias=False)
        self.v = nn.Linear(m.dim, m.kv_heads * m.head_dim, bias=False)
        self.o = nn.Linear(m.heads * m.head_dim, m.dim, bias=False)
        self.gate, self.up = nn.Linear(m.dim, m.ffn_dim, bias=False), nn.Linear(m.dim, m.ffn_dim, bias=False)
        self.down = nn.Linear(m.ffn_dim, m.dim, bias=False)

    def forward(self, x, cos, sin):
        def heads(y, n, turned):
            y = y.view(*y.shape[:2], n, self.m.head_dim).transpose(1, 2)
            if not turned:
                return y
            low, high = y.chunk(2, -1)
            return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)

        h = self.attn_norm(x)
        q, k = heads(self.q(h), self.m.heads, True), heads(self.k(h), self.m.kv_heads, True)
        v = heads(self.v(h), self.m.kv_heads, False)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.m.heads != self.m.kv_heads)
        x = x + self.o(a.transpose(1, 2).reshape(*x.shape[:2], -1))
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, m: ModelConfig):
        super().__init__()
        self.m = m
        self.embed = nn.Embedding(m.vocab, m.dim)
        self.layers = nn.ModuleList(Layer(m) for _ in range(m.layers))
        self.norm = nn.RMSNorm(m.dim, m.norm_eps)
        self.head = nn.Linear(m.dim, m.vocab, bias=False)
        if m.tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        half = torch.arange(0, self.m.head_dim, 2) / self.m.head_dim
        angle = torch.arange(tokens.shape[1])[:, None] * self.m.rope_theta**-half
        cos, sin, x = angle.cos(), angle.sin(), self.embed(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))


def load(model: Llama, run: RunConfig) -> None:
    """Puts the run's theta_0 into the model."""
    import jax

    from templar_jax.sharding import make_mesh, table
    from templar_jax.train.state import init_params

    own = dict(model.named_parameters())
    for param, value in zip(
        table(run), init_params(run, make_mesh(MeshConfig(), jax.devices()[:1])).values(), strict=True
    ):
        for index in np.ndindex(param.shape[: param.stack]):
            unit = torch.tensor(np.asarray(value)[index])
            name = param.name.replace("layers/", f"layers.{index[0]}.") if index else param.name
            own[f"{name}.weight"].data.copy_(unit.T if param.hf_transposed else unit)


class TorchStep:
    """`step() -> loss` on one batch, on all cores."""

    def __init__(self, run: RunConfig, tokens: np.ndarray):
        self.tokens, self.run = torch.tensor(tokens, dtype=torch.long), run
        self.model = Llama(run.model)
        load(self.model, run)
        c = run.inner
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=c.lr / c.warmup,
            betas=(c.beta1, c.beta2),
            eps=c.eps,
            weight_decay=c.weight_decay,
        )

    def __call__(self) -> float:
        logits = self.model(self.tokens)[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits, self.tokens[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.run.inner.clip)
        self.optimizer.step()
        return loss.item()
