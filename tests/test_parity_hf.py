"""Our forward pass against Hugging Face transformers' Llama: same weights, logits equal to 1e-4 in f32.

Runs where the extra `parity` is installed (torch, transformers); skipped elsewhere.
"""

import dataclasses

import numpy as np
import pytest
from models import SMALL, WIDE, hf_weights, mesh_of, rough_params, small_run, tokens

from templar_jax.config import ComputeConfig
from templar_jax.model.llama import from_params
from templar_jax.model.placement import Placement
from templar_jax.train.evaluate import make_evaluate

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `parity` is not installed")

ROTARY_500K = dataclasses.replace(SMALL, rope_theta=500_000.0, kv_heads=1, norm_eps=1e-6)


def hugging_face(run, params):
    """transformers' Llama with the run's weights, every one of them and no other."""
    m = run.model
    config = transformers.LlamaConfig(
        vocab_size=m.vocab,
        hidden_size=m.dim,
        intermediate_size=m.ffn_dim,
        num_hidden_layers=m.layers,
        num_attention_heads=m.heads,
        num_key_value_heads=m.kv_heads,
        head_dim=m.head_dim,
        rms_norm_eps=m.norm_eps,
        rope_theta=m.rope_theta,
        rope_parameters={"rope_type": "default", "rope_theta": m.rope_theta},
        tie_word_embeddings=m.tied,
        max_position_embeddings=512,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).to(torch.float32).eval()
    weights = {name: torch.tensor(np.ascontiguousarray(value)) for name, value in hf_weights(run, params).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if m.tied else set())
    model.tie_weights()
    return model


@pytest.mark.parametrize("path", ["xla", "blockwise"])
@pytest.mark.parametrize("model", [SMALL, WIDE, ROTARY_500K], ids=["tied", "untied", "rope-500k"])
def test_logits_and_loss_equal_transformers(model, path):
    run = small_run(model)
    params, ids = rough_params(run), tokens(run, batch=2, sequence=200)
    with torch.no_grad():
        want = hugging_face(run, params)(torch.tensor(ids, dtype=torch.long)).logits
    got = np.asarray(from_params(run, params, Placement(attention=path))(ids))
    assert abs(got - want.numpy()).max() < 1e-4
    nats = torch.nn.functional.cross_entropy(
        want[:, :-1].flatten(0, 1), torch.tensor(ids[:, 1:].flatten(), dtype=torch.long), reduction="none"
    )
    losses = make_evaluate(run, ComputeConfig(), mesh_of(1))(params, ids)
    np.testing.assert_allclose(losses, nats.reshape(2, -1).sum(-1).numpy(), rtol=1e-5)
