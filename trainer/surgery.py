"""Surgery: a pretrained English encoder becomes an XPT model of the same architecture.

An adaptation layer (ITL) is structurally an encoder layer, so the result is a plain model with up to two more layers: ITL,
the seed's layers, ITL. Word embeddings and MLM output layer are new, sized for the new vocabulary; encoder weights are the
seed's to the bit; the embedding LayerNorm is kept, and position embeddings are unless the recipe says otherwise.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from data_tools.corpus import Corpus
from data_tools.errors import UserError, first_line
from data_tools.packages import locate_model
from trainer.architecture import Architecture, architecture_of
from trainer.embedding_init import initial_embeddings
from trainer.lexicon import read_lexicon
from trainer.mlm import tie_output_bias
from trainer.recipe import Recipe, Surgery, num_itl
from trainer.static_vectors import sample_of

FITTED_TOKENS, FITTED_LENGTH = 4096, 64
"""Of the corpus, by which a near-identity layer is fitted, and of a block of them."""
_OF_ANOTHER_TASK = ("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "auto_map")
"""What a seed's configuration may say of a classifier that it was, or of code of its own."""


def load_seed_config(seed_model: str) -> PretrainedConfig:
    """The seed's configuration. Raises UserError when it cannot be had or its architecture is not supported."""
    try:
        config = AutoConfig.from_pretrained(locate_model(seed_model), trust_remote_code=False)
    except Exception as error:  # what a damaged file makes of transformers is anyone's guess
        raise UserError(
            f"seed_model {seed_model}: expected a folder or hub id with a config.json, found: {first_line(error)}; give one"
        ) from None
    architecture = architecture_of(config, f"seed_model {seed_model}")
    for wrong, found in (
        (config.is_decoder, "is_decoder true"),
        (getattr(config, "position_embedding_type", None) not in (None, "absolute"), "positions that are not absolute"),
        (architecture.model_type == "roberta" and config.pad_token_id is None, "no pad_token_id, from which RoBERTa counts positions"),
    ):
        if wrong:
            raise UserError(f"seed_model {seed_model}: its config.json has {found}; give an encoder with absolute positions")
    return config


def xpt_config(seed_config: PretrainedConfig, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The XPT model's configuration. Raises UserError for a tokenizer without special pieces or too long a sequence_length."""
    settings, architecture = recipe.surgery, architecture_of(seed_config)
    changes = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": seed_config.num_hidden_layers + len(_itl_layers(settings.itl, 2)),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": settings.tie_output,
    }
    for name, value in changes.items():
        if value is None:
            raise UserError(
                f"corpus {recipe.corpus}: its tokenizer has no {name.removesuffix('_id')}; prepare the corpus with data_tools.prepare"
            )
    kept = {key: value for key, value in seed_config.to_dict().items() if key not in _OF_ANOTHER_TASK}
    config = AutoConfig.for_model(**{**kept, **changes})
    first, old_first = architecture.first_position(config), architecture.first_position(seed_config)
    num_positions = seed_config.max_position_embeddings - old_first
    if recipe.sequence_length > num_positions:
        raise UserError(f"sequence_length {recipe.sequence_length}: the seed model has positions for {num_positions} tokens only; lower it")
    config.max_position_embeddings = num_positions + first
    config.architectures = [f"{'Roberta' if architecture.model_type == 'roberta' else 'Bert'}ForMaskedLM"]
    return config


@dataclass(frozen=True)
class Seed:
    """What surgery takes from the seed model."""

    source: str
    config: PretrainedConfig
    architecture: Architecture
    weights: dict[str, torch.Tensor]
    """fp32, under the names of the `...ForMaskedLM` class; without the MLM head when the seed has none."""
    tokenizer: PreTrainedTokenizerBase


def load_seed(seed_model: str) -> Seed:
    """Load from a folder or the hub, safetensors only. Raises UserError for what is missing or of an unsupported architecture."""
    source, config = locate_model(seed_model), load_seed_config(seed_model)
    architecture = architecture_of(config)
    try:
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # the loading report repeats what `missing_keys` says
        model, info = AutoModelForMaskedLM.from_pretrained(
            source, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        transformers_logging.set_verbosity(verbosity)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"seed_model {seed_model}: expected a folder or hub id with config, safetensors weights and tokenizer, "
            f"found: {first_line(error)}; give another"
        ) from None
    missing = set(info["missing_keys"])
    lacking = [name for name in missing if name.startswith(architecture.base + ".") and "pooler" not in name]
    if lacking:
        raise UserError(
            f"seed_model {seed_model}: its weights lack {len(lacking)} encoder parameters, e.g. {sorted(lacking)[0]}; get it anew"
        )
    unused = sorted(name for name in info["unexpected_keys"] if ".layer." in name and "pooler" not in name)
    if unused:  # more layers than the configuration says, or layers of another kind
        raise UserError(
            f"seed_model {seed_model}: {len(unused)} of its encoder's weights have no place in its config.json's model, e.g. {unused[0]}; "
            "get both from one source, or give another"
        )
    weights = {name: value for name, value in model.state_dict().items() if name not in missing}
    return Seed(seed_model, config, architecture, weights, tokenizer)


def check_ingredients(seed_model: str, surgery: Surgery) -> None:
    """Raises UserError, without loading weights, for what `load_seed` and the first embeddings would lack on this host."""
    source = locate_model(seed_model)
    load_seed_config(seed_model)
    try:
        AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"seed_model {seed_model}: its tokenizer cannot be loaded ({first_line(error)}); get it anew, or give another"
        ) from None
    names = ("model.safetensors", "model.safetensors.index.json")
    if Path(source).is_dir():
        there = any((Path(source) / name).is_file() for name in names)
        index = Path(source) / names[1]
        if index.is_file() and not (Path(source) / names[0]).is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise UserError(
                    f"seed_model {seed_model}: expected the names of its files of weights in {index.name}, found something else "
                    f"({type(error).__name__}: {error}); get it anew"
                ) from None
            lacking = [shard for shard in shards if not (Path(source) / shard).is_file()]
            if lacking:
                raise UserError(
                    f"seed_model {seed_model}: {len(lacking)} of the {len(shards)} files of its weights are missing, e.g. {lacking[0]}; "
                    "get it anew"
                )
    else:
        there = any(isinstance(huggingface_hub.try_to_load_from_cache(source, name), str) for name in names) or _offered(source, names)
    if not there:
        raise UserError(
            f"seed_model {seed_model}: no safetensors weights in it, or none that can be had from here; give another, or a folder with them"
        )
    if surgery.embedding_init == "dictionary" and surgery.lexicon:
        read_lexicon(surgery.lexicon)


def _offered(repository: str, names: tuple[str, ...]) -> bool:
    try:
        return any(huggingface_hub.file_exists(repository, name) for name in names)
    except Exception:  # no network, among others
        return False


def operate(seed: Seed, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, corpus: Corpus) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The XPT model in fp32 on CPU, and a report of what was copied and made.

    Deterministic in `recipe.seed`. Raises UserError where the seed cannot give what the recipe asks for.
    """
    settings, architecture = recipe.surgery, seed.architecture
    config = xpt_config(seed.config, recipe, tokenizer)
    first, old_first = architecture.first_position(config), architecture.first_position(seed.config)
    if not settings.reinit_head and f"{architecture.head_dense}.weight" not in seed.weights:
        raise UserError(f"surgery.reinit_head: false, but seed model {seed.source} has no MLM head; set it to true")

    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
    tie_output_bias(model.eval())
    new = dict(model.named_parameters())
    report: dict[str, Any] = {"embedding_init": settings.embedding_init, "parameters": sum(p.numel() for p in new.values())}
    with torch.no_grad():
        if settings.seed_weights == "pretrained":
            _copy_encoder(new, seed, settings, first, old_first)
            word, details = initial_embeddings(
                settings.embedding_init, seed.weights[architecture.word_embeddings], seed.tokenizer, tokenizer, corpus,
                settings.lexicon, config.initializer_range, recipe.seed,
            )  # fmt: skip
            report["embeddings"] = details
            new[architecture.word_embeddings].copy_(word)
            untied = new.get(f"{architecture.decoder}.weight")
            if untied is not None and settings.embedding_init != "random":
                untied.copy_(word)  # a random output matrix stays the independent draw that it is
        if settings.itl_init == "near-identity":
            tokens = _some_blocks(corpus, min(FITTED_LENGTH, recipe.sequence_length))
            for layer in _itl_layers(settings.itl, config.num_hidden_layers):  # the first before the last, whose input it changes
                # What follows the last layer is new, here and in fine-tuning, and learns best from unit scale.
                _pass_through(model.base_model, layer, tokens, unit_scale=layer > 0 and settings.reinit_head)
        if settings.output_bias_init == "unigram":
            new[architecture.bias].copy_(_log_unigram(corpus, config.vocab_size))
    return model, report


def _some_blocks(corpus: Corpus, length: int) -> torch.Tensor:
    """(blocks, length) token ids of pieces spread over the training split, FITTED_TOKENS together, or what there is."""
    tokens = corpus.split("train").tokens
    starts = np.linspace(0, max(0, len(tokens) - length), FITTED_TOKENS // length).astype(np.int64)
    return torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]).astype(np.int64))


def _pass_through(base: Any, layer: int, tokens: torch.Tensor, unit_scale: bool) -> None:
    """Make a layer give back what reaches it, as nearly as it can: zeros in the two projections that lead back into the residual stream;
    and its two LayerNorms, which nothing can leave out, undone by their own scale and shift of each dimension, by least squares over the
    states of the tokens. unit_scale: but for one factor, by which the states' root mean square becomes 1."""
    wanted = states = base(input_ids=tokens, output_hidden_states=True).hidden_states[layer].flatten(0, 1)
    if unit_scale:
        wanted = states / states.square().mean().sqrt()
    for part in (base.encoder.layer[layer].attention.output, base.encoder.layer[layer].output):
        part.dense.weight.zero_()
        part.dense.bias.zero_()
        normal = nn.functional.layer_norm(states, states.shape[-1:], eps=part.LayerNorm.eps)
        centre, spread = normal.mean(0), normal.var(0, correction=0).clamp_min(1e-6)
        scale = ((normal - centre) * (wanted - wanted.mean(0))).mean(0) / spread
        part.LayerNorm.weight.copy_(scale)
        part.LayerNorm.bias.copy_(wanted.mean(0) - scale * centre)
        states = part.LayerNorm(states)


def _itl_layers(itl: str, num_layers: int) -> list[int]:
    before, after = num_itl(itl)
    return [0] * before + [num_layers - 1] * after


def _copy_encoder(new: dict[str, nn.Parameter], seed: Seed, settings: Surgery, first: int, old_first: int) -> None:
    """Everything but the word embeddings and the output layer: layers move up by one when an ITL stands before them, position rows
    move with the pad id."""
    architecture, offset = seed.architecture, num_itl(settings.itl)[0]
    for name, value in seed.weights.items():
        layer = architecture.layer_of(name)
        if layer is not None:
            new[name.replace(f"{architecture.layer}{layer}.", f"{architecture.layer}{layer + offset}.", 1)].copy_(value)
        elif name == architecture.position_embeddings:
            if not settings.reinit_positions:
                new[name][first:].copy_(value[old_first:])
        elif name.startswith(architecture.embeddings) and name != architecture.word_embeddings:
            if name in new:  # buffers of positions are no parameters
                new[name].copy_(value)
        elif name.startswith((architecture.head_dense, architecture.head_norm)) and not settings.reinit_head:
            new[name].copy_(value)


def _log_unigram(corpus: Corpus, vocab_size: int) -> torch.Tensor:
    """(V,) log of each piece's share of the training split, one added to every count."""
    counts = np.bincount(sample_of(corpus.split("train").tokens, 50_000_000), minlength=vocab_size)[:vocab_size] + 1.0
    return torch.from_numpy(np.log(counts / counts.sum())).float()
