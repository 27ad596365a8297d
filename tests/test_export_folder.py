"""Parameters -> a Hugging Face folder -> parameters, and what is refused on the way."""

import dataclasses
import json

import numpy as np
import pytest
from models import SMALL, WIDE, hf_weights, mesh_of, rough_params, small_run
from safetensors.numpy import load_file, save_file

from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.errors import ConfigError, DataError
from templar_jax.export import export_folder, import_folder
from templar_jax.huggingface.config_json import read_config
from templar_jax.huggingface.weights import tensors
from templar_jax.sharding import table
from templar_jax.train.inner import make_inner

UNTIED = dataclasses.replace(SMALL, tied=False, vocab=320)


def run_of(model=SMALL, **inner) -> RunConfig:
    return dataclasses.replace(small_run(dataclasses.replace(model, vocab=max(model.vocab, 320)), **inner))


def same(ours, theirs) -> None:
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(run, params, folder) of a small model with an untied head, in one file."""
    run = run_of(UNTIED)
    params = rough_params(run)
    out = tmp_path_factory.mktemp("export") / "model"
    export_folder(out, run, params.__getitem__)
    return run, params, out


@pytest.mark.parametrize("model", [SMALL, UNTIED, WIDE], ids=["tied", "untied", "wide"])
def test_round_trip_is_exact_from_one_mesh_to_another(tmp_path, model):
    run = run_of(model)
    params = rough_params(run, mesh_of(4))
    made = export_folder(tmp_path / "model", run, params.__getitem__, shard_bytes=2**20)
    back = import_folder(tmp_path / "model", run, mesh_of(2, 2))
    same(params, back)
    assert sorted(made.files) == sorted(path.name for path in (tmp_path / "model").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "a draft was left behind"


def test_files_hold_the_names_and_orientation_of_transformers(tmp_path):
    run = run_of(UNTIED)
    params = rough_params(run)
    export_folder(tmp_path / "model", run, params.__getitem__, shard_bytes=200_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    found = {}
    for name in set(index["weight_map"].values()):
        content = load_file(tmp_path / "model" / name)
        assert {index["weight_map"][key] for key in content} == {name}
        assert sum(array.nbytes for array in content.values()) <= 200_000 or len(content) == 1
        found.update(content)
    expected = hf_weights(run, params)
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in found.values())


def test_bfloat16_rounds_to_nearest_even_and_is_stable(tmp_path):
    import ml_dtypes

    run = run_of()
    params = rough_params(run)
    export_folder(tmp_path / "a", run, params.__getitem__, dtype="bfloat16")
    back = import_folder(tmp_path / "a", run, mesh_of(1))
    rounded = {name: np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32) for name, x in params.items()}
    same(rounded, back)
    export_folder(tmp_path / "b", run, back.__getitem__, dtype="bfloat16")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_stream_asks_for_each_parameter_once_in_order(tmp_path):
    run = run_of()
    params = {name: np.asarray(x) for name, x in rough_params(run).items()}
    asked = []
    seen = []
    export_folder(
        tmp_path / "model",
        run,
        lambda name: asked.append(name) or params[name],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert asked == [param.name for param in table(run)]
    total = len(list(tensors(run, run.model.vocab)))
    assert seen == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (2, 4)], ids=str)
def test_a_cut_vocabulary_is_padded_with_the_mean_row(tmp_path, mesh):
    run = run_of(dataclasses.replace(WIDE, vocab=512))  # 64 rows a shard: one whole shard is padding
    params = rough_params(run)
    export_folder(tmp_path / "model", run, params.__getitem__, vocab=430)
    assert read_config(tmp_path / "model").vocab == 430
    back = import_folder(tmp_path / "model", run, mesh_of(*mesh))
    for name, rows in (("embed", lambda x: x), ("head", np.transpose)):
        theirs, ours = rows(np.asarray(params[name])), rows(np.asarray(back[name]))
        np.testing.assert_array_equal(ours[:430], theirs[:430])
        mean = theirs[:430].astype(np.float64).mean(0).astype(np.float32)
        np.testing.assert_allclose(ours[430:], np.broadcast_to(mean, (82, 512)), atol=1e-7)
    same({"layers/q": params["layers/q"]}, {"layers/q": back["layers/q"]})


def test_continued_training_from_imported_weights_lowers_the_held_out_loss(tmp_path):
    run = run_of(lr=3e-3, warmup=0)
    text = b"".join(b"%d times %d is %d. " % (a, b, a * b) for a in range(40) for b in range(40))
    tokens_NS = np.frombuffer(text[: len(text) // 64 * 64], np.uint8).reshape(-1, 64).astype(np.int32)
    rng = np.random.default_rng(0)
    rng.shuffle(tokens_NS)
    heldout_BS, train_NS = tokens_NS[:16], tokens_NS[16:]
    mesh = mesh_of(4)
    inner = make_inner(run, ComputeConfig(attention="xla"), mesh)

    def trained(params, first: int, steps: int):
        opt = inner.init()
        for step in range(first, first + steps):
            params, opt, _ = inner.step(params, opt, train_NS[8 * step : 8 * step + 8], step)
        return params

    from templar_jax.train.evaluate import make_evaluate

    evaluate = make_evaluate(run, ComputeConfig(attention="xla"), mesh)

    def nats(params) -> float:
        return float(evaluate(params, heldout_BS).mean() / 63)

    params = trained(rough_params(run, mesh), 0, 12)
    before = nats(params)
    export_folder(tmp_path / "model", run, params.__getitem__)
    imported = import_folder(tmp_path / "model", run, mesh)
    assert nats(imported) == before
    assert nats(trained(imported, 12, 12)) < before - 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "scaled (llama3)"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "scaled (yarn)"),
        ({"attention_bias": True}, "attention_bias is set"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_size": 192}, "--model.dim 192"),
        ({"num_hidden_layers": 1}, "has 9 tensors that a Llama does not have"),
        ({"num_hidden_layers": 3}, "--model.layers 3"),
        ({"tie_word_embeddings": True}, "--model.tied true"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_this_model_is_not_is_refused_with_what_to_change(exported, tmp_path, change, message):
    run, _, folder = exported
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    if change == {"num_hidden_layers": 1}:
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, layers=1))
    with pytest.raises(ConfigError) as caught:
        import_folder(tmp_path, run, mesh_of(1))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["no file", "cut", "missing tensor", "nan", "shape", "no config", "config"])
def test_damaged_folders_are_refused(exported, tmp_path, damage):
    run, _, folder = exported
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    content = load_file(folder / "model.safetensors")
    kind: type[Exception] = DataError
    if damage == "missing tensor":
        del content["model.norm.weight"]
    elif damage == "nan":
        content["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    elif damage == "shape":
        content["model.norm.weight"] = content["model.norm.weight"][:64].copy()
        kind = ConfigError
    save_file(content, tmp_path / "model.safetensors")
    if damage == "no file":
        (tmp_path / "model.safetensors").unlink()
    elif damage == "cut":
        data = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(data[:-1000])
    elif damage == "no config":
        (tmp_path / "config.json").unlink()
    elif damage == "config":
        (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 0}')
    with pytest.raises(kind) as caught:
        import_folder(tmp_path, run, mesh_of(1))
    assert "\n" not in str(caught.value)


def test_files_of_transformers_4_and_older_are_read(exported, tmp_path):
    run, params, folder = exported
    values = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "head_dim", "dtype", "mlp_bias"):
        del values[key]
    values["rope_scaling"] = None
    (tmp_path / "config.json").write_text(json.dumps(values))
    content = load_file(folder / "model.safetensors")
    content["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    save_file({name: x.astype(np.float16) for name, x in content.items()}, tmp_path / "model.safetensors")
    back = import_folder(tmp_path, run, mesh_of(1))
    rounded = {name: np.asarray(x).astype(np.float16).astype(np.float32) for name, x in params.items()}
    same(rounded, back)


def test_values_too_small_for_a_run_become_zero(exported, tmp_path):
    run, _, folder = exported
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    content = load_file(folder / "model.safetensors")
    content["model.norm.weight"][:3] = [2.0**-101, -(2.0**-130), 2.0**-100]
    save_file(content, tmp_path / "model.safetensors")
    back = import_folder(tmp_path, run, mesh_of(1))
    np.testing.assert_array_equal(np.asarray(back["norm"])[:3], np.array([0, 0, 2.0**-100], np.float32))


def test_an_export_never_overwrites_and_leaves_nothing_half_done(exported, tmp_path):
    run, params, _ = exported
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").touch()
    with pytest.raises(ConfigError, match="exists"):
        export_folder(tmp_path / "model", run, params.__getitem__)

    def broken(name: str):
        if name == "head":
            raise DataError("gone")
        return params[name]

    with pytest.raises(DataError, match="gone"):
        export_folder(tmp_path / "other", run, broken)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(ConfigError, match="256 rows"):
        export_folder(tmp_path / "other", run, params.__getitem__, vocab=256)  # the tokenizer has 257 ids
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_mixture_of_experts_comes_back_and_a_shared_expert_is_refused(tmp_path):
    mixture = dataclasses.replace(SMALL, ffn_dim=0, experts=4, experts_per_token=2, expert_ffn_dim=64)
    run = run_of(mixture)
    params = rough_params(run)
    export_folder(tmp_path / "model", run, params.__getitem__)
    same(import_folder(tmp_path / "model", run, mesh_of(4)), params)
    with pytest.raises(ConfigError, match=r"set --model.experts_per_token 2"):
        import_folder(tmp_path / "model", run_of(dataclasses.replace(mixture, experts_per_token=3)), mesh_of(1))
    shared = run_of(dataclasses.replace(mixture, ffn_dim=64))
    with pytest.raises(ConfigError, match="shared expert"):
        export_folder(tmp_path / "other", shared, rough_params(shared).__getitem__)
    assert not (tmp_path / "other").exists()
