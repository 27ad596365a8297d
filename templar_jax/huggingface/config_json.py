"""config.json of a LlamaForCausalLM, or of a MixtralForCausalLM, <-> ModelConfig.

Both ways are exact: what this model cannot compute is refused with what to change, never read past.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from templar_jax.config import ModelConfig, RunConfig
from templar_jax.errors import ConfigError, DataError

GRAIN = 64  # the vocabulary is padded to a multiple of this (sharding.GRAIN)
CONFIG = "config.json"
# What a LlamaConfig means where its file is silent.
DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "max_position_embeddings": 2048,
}
# The same of a MixtralConfig, where that is something else.
MIXTRAL_DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131_072}
FREE = ("load_balance", "z_loss")  # settings that training has and weights have not


@dataclass(frozen=True)
class HfModel:
    """A folder's model. `model.vocab` is padded; `vocab` rows of it stand in the file."""

    model: ModelConfig
    vocab: int
    sequence: int  # the longest that the weights were trained on, by max_position_embeddings


def to_config(run: RunConfig, dtype: str, separator: int | None, vocab: int) -> dict[str, Any]:
    """The content of config.json. `vocab` rows of embedding and head are exported; `dtype` is "float32" or "bfloat16".

    `rope_theta` and `dtype` are written in the spelling of transformers 4 and of 5.

    Raises:
      ConfigError: a mixture with a shared expert, which Mixtral does not have.
    """
    m = run.model
    if m.experts and m.ffn_dim:
        raise ConfigError(
            f"model.ffn_dim {m.ffn_dim} is a shared expert, and MixtralForCausalLM has none: only mixtures with "
            "model.ffn_dim 0 have a form in Hugging Face's format here"
        )
    return {
        "vocab_size": vocab,
        "hidden_size": m.dim,
        **(_mixtral(m) if m.experts else _llama(m)),
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "num_key_value_heads": m.kv_heads,
        "head_dim": m.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": run.data.sequence,
        "rms_norm_eps": m.norm_eps,
        "rope_theta": m.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": m.rope_theta},
        "tie_word_embeddings": m.tied,
        "attention_dropout": 0.0,
        "bos_token_id": separator,  # training puts one between documents: it begins the next
        "eos_token_id": separator,
        "pad_token_id": None,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def _llama(m: ModelConfig) -> dict[str, Any]:
    names = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    return {**names, "intermediate_size": m.ffn_dim, "attention_bias": False, "mlp_bias": False}


def _mixtral(m: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": m.expert_ffn_dim,
        "num_local_experts": m.experts,
        "num_experts_per_tok": m.experts_per_token,
        "router_aux_loss_coef": m.load_balance,
        "router_jitter_noise": 0.0,
        "output_router_logits": False,
        "sliding_window": None,
    }


def read_config(folder: Path) -> HfModel:
    """The model of a Hugging Face folder.

    Raises:
      ConfigError: a model that this one is not (another architecture, scaled rotary embedding, biases, ...).
      DataError: no config.json, or a damaged one.
    """
    path = folder / CONFIG
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"no {CONFIG} in {folder}: give a folder in Hugging Face's format") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no object: copy it again")
    problem = _unlike(found)
    if problem:
        raise ConfigError(f"{path}: {problem}")
    try:
        return _model(found)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(f"{path} is damaged or incomplete ({type(error).__name__}: {error}): copy it again") from error


def _unlike(found: dict[str, Any]) -> str | None:
    """Why this model cannot compute that one, and what to do; None where it can."""
    kind = found.get("model_type")
    if kind not in ("llama", "mixtral"):
        return f'model_type is {kind!r}, only "llama" and "mixtral" have the same computation: choose such a model'
    if kind == "mixtral" and found.get("sliding_window") is not None:
        return "its attention has a sliding window, this model's sees everything: choose a model without"
    for key in ("rope_scaling", "rope_parameters"):
        rope = found.get(key) or {}
        scaling = rope.get("rope_type", rope.get("type", "default"))
        if scaling != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
            return (
                f"its rotary embedding is scaled ({scaling}), this model's is plain: choose a model without "
                f"(Llama 2, Llama 3.0), or remove {key} from a copy and let training repair what changes"
            )
    for key in ("attention_bias", "mlp_bias"):
        if found.get(key):
            return f"{key} is set, this model has no biases: choose a model without"
    if found.get("hidden_act", "silu") != "silu":
        return f"hidden_act is {found['hidden_act']!r}, this model has silu: choose a model with it"
    if found.get("quantization_config"):
        return "its weights are quantised: take the model's version in bfloat16 or float32"
    return None


def _model(found: dict[str, Any]) -> HfModel:
    heads, dim = int(found["num_attention_heads"]), int(found["hidden_size"])
    vocab = int(found["vocab_size"])
    kv_heads, head_dim = found.get("num_key_value_heads"), found.get("head_dim")

    mixture = found.get("model_type") == "mixtral"
    defaults = {**DEFAULTS, **(MIXTRAL_DEFAULTS if mixture else {})}

    def value(key: str) -> Any:
        return found.get(key, defaults[key])

    width = int(found["intermediate_size"])
    experts = {}
    if mixture:
        counts = int(found.get("num_local_experts", 8)), int(found.get("num_experts_per_tok", 2))
        experts = dict(experts=counts[0], experts_per_token=counts[1], expert_ffn_dim=width)
    model = ModelConfig(
        vocab=-(-vocab // GRAIN) * GRAIN,
        dim=dim,
        layers=int(found["num_hidden_layers"]),
        heads=heads,
        kv_heads=heads if kv_heads is None else int(kv_heads),
        head_dim=dim // heads if head_dim is None else int(head_dim),
        ffn_dim=0 if mixture else width,
        rope_theta=float(
            (found.get("rope_parameters") or {}).get("rope_theta", value("rope_theta"))
        ),  # transformers 5, 4
        norm_eps=float(value("rms_norm_eps")),
        tied=bool(value("tie_word_embeddings")),
        **experts,
    )
    numbers = (model.dim, model.layers, model.heads, model.kv_heads, model.head_dim, width, model.vocab)
    if min(numbers) < 1 or not math.isfinite(model.rope_theta) or model.norm_eps <= 0:
        raise ValueError("a size that is no positive number")
    return HfModel(model, vocab, int(value("max_position_embeddings")))


def check_fits(run: RunConfig, found: HfModel, folder: Path) -> None:
    """Raises ConfigError, with every setting to change, unless the run's model is the folder's.

    The run may have more rows for tokens than the folder: padding, or a tokenizer that grew.
    """
    names = [n for n in ModelConfig.__dataclass_fields__ if getattr(run.model, n) != getattr(found.model, n)]
    names = [name for name in names if name not in FREE]
    if run.model.vocab >= found.vocab and "vocab" in names:
        names.remove("vocab")
    if names:
        flags = " ".join(f"--model.{name} {str(getattr(found.model, name)).lower()}" for name in names)
        raise ConfigError(f"the weights in {folder} are of another shape than the run's model: set {flags}")
