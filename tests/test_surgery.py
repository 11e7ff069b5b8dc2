"""Surgery against the seed's own tensors and against `transformers`."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, RobertaConfig, XLNetConfig

from data_tools.errors import UserError
from tests.tiny import KOREAN, make_seed, make_tokenizer
from trainer.recipe import Recipe, Stage, Surgery
from trainer.surgery import check_ingredients, load_seed, load_seed_config, operate, xpt_config

TOKENIZER = make_tokenizer(KOREAN, 60)


def make_recipe(folder: Path, **surgery: Any) -> Recipe:
    stage = Stage(name="a", train=("all",), steps=1, learning_rate=1e-3)
    return Recipe(name="t", seed_model=str(folder), corpus="c", output_dir="o", global_batch_size=1, sequence_length=16,
                  stages=(stage,), surgery=surgery)  # fmt: skip


def corpus_of(tokens: list[int]) -> Any:
    return SimpleNamespace(split=lambda name: SimpleNamespace(tokens=np.array(tokens)))


def transplant(folder: Path, **surgery: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    model, _ = operate(load_seed(str(folder)), make_recipe(folder, **surgery), TOKENIZER, corpus_of([7, 7, 8]))
    return model.eval(), {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("kind", "pad_id"), [("roberta", 1), ("roberta", 0), ("bert", 0), ("bert", 1)])
@pytest.mark.parametrize("itl", ["both", "input", "output", "none"])
def test_the_encoder_is_the_seeds_to_the_bit(tmp_path: Path, kind: str, pad_id: int, itl: str) -> None:
    seed = make_seed(tmp_path, kind, pad_id)
    model, new = transplant(tmp_path, itl=itl)
    old = getattr(seed, kind)
    shift = int(itl in ("both", "input"))
    assert model.config.num_hidden_layers == 3 + {"both": 2, "none": 0}.get(itl, 1)
    for index, layer in enumerate(old.encoder.layer):
        for name, value in layer.state_dict().items():
            assert torch.equal(new[f"{kind}.encoder.layer.{index + shift}.{name}"], value)
    for name in ("token_type_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"):
        assert torch.equal(new[f"{kind}.embeddings.{name}"], old.embeddings.state_dict()[name])
    assert new[f"{kind}.embeddings.word_embeddings.weight"].shape == (65, 16)

    # The same embeddings in, the same layers: what the seed's layers make of a sentence at positions 0, 1, ... must not change.
    with torch.no_grad():
        words = torch.randn(1, 20, 16)
        seed_positions = torch.arange(20)[None] + (pad_id + 1 if kind == "roberta" else 0)
        ids = torch.full((1, 20), 9)  # ordinary tokens: the new model counts positions by itself
        base = getattr(model, kind)
        base.embeddings.word_embeddings.weight[9] = 0.0
        old.embeddings.word_embeddings.weight.zero_()
        mine = base.embeddings(input_ids=ids) + words
        theirs = old.embeddings(input_ids=ids, position_ids=seed_positions) + words
        assert torch.equal(mine, theirs)
        for index in range(3):
            mine, theirs = base.encoder.layer[index + shift](mine), old.encoder.layer[index](theirs)
            mine, theirs = (x[0] if isinstance(x, tuple) else x for x in (mine, theirs))
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["roberta", "bert"])
@pytest.mark.parametrize("itl", ["both", "input", "output"])
def test_near_identity_layers_give_back_what_reaches_them(tmp_path: Path, kind: str, itl: str) -> None:
    """Also where the seed's LayerNorms scale and shift, as every trained one's do: the encoder sees what the seed's own would see; and a
    new head sees the encoder's states at unit scale, one that is kept sees them as they are."""
    seed, tokens = make_seed(tmp_path, kind), np.random.default_rng(0).integers(5, 65, 9000).tolist()
    with torch.no_grad():
        seed.base_model.embeddings.LayerNorm.weight.mul_(0.4)
        seed.base_model.encoder.layer[-1].output.LayerNorm.weight.mul_(0.4)
    seed.save_pretrained(tmp_path)
    ids = torch.tensor(tokens[:160]).view(10, 16)
    for init, near, kept in (("near-identity", True, False), ("near-identity", True, True), ("random", False, False)):
        recipe = make_recipe(tmp_path, itl=itl, itl_init=init, reinit_head=not kept)
        model, _ = operate(load_seed(str(tmp_path)), recipe, TOKENIZER, corpus_of(tokens))
        with torch.no_grad():
            states = model.eval().base_model(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in {"both": (0, 4), "input": (0,), "output": (3,)}[itl]:
            factor = states[layer].square().mean().sqrt() if layer and not kept else 1.0
            error = (states[layer + 1] * factor - states[layer]).norm() / states[layer].norm()
            assert (error < 0.3) == near, (init, layer, float(error))
        layers = model.base_model.encoder.layer
        assert [bool(layer.output.dense.weight.any()) for layer in layers] == [
            not near or not ((number == 0 and itl != "output") or (number == len(layers) - 1 and itl != "input"))
            for number in range(len(layers))
        ]


@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_settings(tmp_path: Path, kind: str) -> None:
    seed = make_seed(tmp_path, kind)
    dense = {"roberta": "lm_head.dense.weight", "bert": "cls.predictions.transform.dense.weight"}[kind]
    decoder = {"roberta": "lm_head.decoder.weight", "bert": "cls.predictions.decoder.weight"}[kind]
    bias = {"roberta": "lm_head.bias", "bert": "cls.predictions.bias"}[kind]
    positions, old = f"{kind}.embeddings.position_embeddings.weight", seed.state_dict()
    _, fresh = transplant(tmp_path)
    _, kept = transplant(tmp_path, reinit_head=False)
    _, moved = transplant(tmp_path, reinit_positions=True)
    untied_model, untied = transplant(tmp_path, tie_output=False)
    _, drawn = transplant(tmp_path, tie_output=False, embedding_init="source-statistics")
    assert torch.equal(drawn[decoder], drawn[f"{kind}.embeddings.word_embeddings.weight"])
    _, unigram = transplant(tmp_path, output_bias_init="unigram")
    random_model, random = transplant(tmp_path, seed_weights="random")
    assert torch.equal(kept[dense], old[dense]) and not torch.equal(fresh[dense], old[dense])
    first = 2 if kind == "roberta" else 0
    assert torch.equal(fresh[positions][first:], old[positions][first:]) and not torch.equal(moved[positions], fresh[positions])
    assert decoder not in fresh and not torch.equal(untied[decoder], untied[f"{kind}.embeddings.word_embeddings.weight"])
    assert untied_model.get_output_embeddings().bias is untied_model.get_parameter(bias)
    assert not fresh[bias].any() and torch.allclose(unigram[bias].exp()[[7, 8, 9]] * 68, torch.tensor([3.0, 2.0, 1.0]))
    assert random_model.config.num_hidden_layers == 5
    assert not any(torch.equal(random[f"{kind}.encoder.layer.{i + 1}.output.dense.weight"],
                               old[f"{kind}.encoder.layer.{i}.output.dense.weight"]) for i in range(3))  # fmt: skip
    again = transplant(tmp_path)[1]
    assert all(torch.equal(again[name], fresh[name]) for name in fresh)


def test_a_seed_without_a_head_gets_one_or_is_refused(tmp_path: Path) -> None:
    make_seed(tmp_path, "bert", headless=True)
    model, new = transplant(tmp_path)
    assert "cls.predictions.transform.dense.weight" in new
    assert model(input_ids=torch.tensor([[0, 9, 2]])).logits.shape == (1, 3, 65)
    with pytest.raises(UserError, match="reinit_head"):
        transplant(tmp_path, reinit_head=False)


def test_the_new_config_loads_in_transformers(tmp_path: Path) -> None:
    make_seed(tmp_path / "seed", "roberta", pad_id=0)
    of_a_classifier = {"id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": "regression", "auto_map": {"AutoModel": "x--y.Z"}}
    config = json.loads((tmp_path / "seed" / "config.json").read_text()) | of_a_classifier
    (tmp_path / "seed" / "config.json").write_text(json.dumps(config))
    model, _ = transplant(tmp_path / "seed")
    model.save_pretrained(tmp_path / "new")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert not set(of_a_classifier) & set(config)
    assert config["pad_token_id"] == 1 and config["max_position_embeddings"] == 22 and config["architectures"] == ["RobertaForMaskedLM"]
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "new").eval()
    ids = torch.tensor([[0, 9, 10, 2, 1, 1]])
    assert torch.equal(again(ids, attention_mask=(ids != 1).long()).logits, model(ids, attention_mask=(ids != 1).long()).logits)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        load_seed_config(str(tmp_path / "nowhere"))
    XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16, vocab_size=10).save_pretrained(tmp_path / "xlnet")
    with pytest.raises(UserError, match=r"unsupported architecture 'xlnet'.*roberta, bert"):
        load_seed_config(str(tmp_path / "xlnet"))
    RobertaConfig(**{"hidden_size": 16, "num_attention_heads": 2}).save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="safetensors weights"):
        load_seed(str(tmp_path / "bare"))
    make_seed(tmp_path / "damaged", "roberta")
    weights = (tmp_path / "damaged" / "model.safetensors").read_bytes()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="damaged: expected a folder or hub id with config, safetensors weights and tokenizer"):
        load_seed(str(tmp_path / "damaged"))
    (tmp_path / "damaged" / "config.json").write_text('{"model_type": "roberta", "hidden_size": "x"}')
    with pytest.raises(UserError, match=r"damaged: expected a folder or hub id with a config\.json"):
        load_seed_config(str(tmp_path / "damaged"))
    for number, (change, message) in enumerate(
        (
            ({"num_hidden_layers": 2}, "16 of its encoder's weights have no place"),
            ({"num_hidden_layers": 4}, "its weights lack 16 encoder parameters, e.g. roberta.encoder.layer.3"),
            ({"is_decoder": True}, "is_decoder true"),
            ({"position_embedding_type": "relative_key"}, "positions that are not absolute"),
            ({"pad_token_id": None}, "no pad_token_id"),
        )
    ):
        folder = tmp_path / f"other-{number}"
        make_seed(folder, "roberta")
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=message):
            load_seed(str(folder))
    make_seed(tmp_path / "whole", "roberta")
    (tmp_path / "lexicon").write_text("a\tb\n")
    check_ingredients(str(tmp_path / "whole"), Surgery(embedding_init="dictionary", lexicon=tmp_path / "lexicon"))
    check_ingredients(str(tmp_path / "whole"), Surgery(embedding_init="anchors", lexicon=tmp_path / "none"))
    with pytest.raises(UserError, match=r"lexicon .*none: no such file"):
        check_ingredients(str(tmp_path / "whole"), Surgery(embedding_init="dictionary", lexicon=tmp_path / "none"))
    (tmp_path / "whole" / "model.safetensors").rename(tmp_path / "whole" / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "whole" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"1 of the 2 files of its weights are missing, e\.g\. model-2"):
        check_ingredients(str(tmp_path / "whole"), Surgery(embedding_init="random", lexicon=None))
    for broken in ("{}", "not json", "[]", '{"weight_map": 3}'):
        (tmp_path / "whole" / "model.safetensors.index.json").write_text(broken)
        with pytest.raises(
            UserError, match=r"expected the names of its files of weights in model\.safetensors\.index\.json, found something else"
        ):
            check_ingredients(str(tmp_path / "whole"), Surgery(embedding_init="random", lexicon=None))
    (tmp_path / "whole" / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="no safetensors weights"):
        check_ingredients(str(tmp_path / "whole"), Surgery(embedding_init="random", lexicon=None))
    (tmp_path / "whole" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        check_ingredients(str(tmp_path / "whole"), Surgery(embedding_init="random", lexicon=None))
    with pytest.raises(UserError, match="no Python package"):
        load_seed_config("package:no_such_package/model")
    make_seed(tmp_path / "seed", "bert")
    recipe = make_recipe(tmp_path / "seed").model_copy(update={"sequence_length": 21})
    with pytest.raises(UserError, match="positions for 20 tokens"):
        xpt_config(load_seed_config(str(tmp_path / "seed")), recipe, TOKENIZER)
