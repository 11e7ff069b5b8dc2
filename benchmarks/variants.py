"""Runs trainer/xpt.py with changes that no recipe has, for the experiments of benchmarks/evidence.yaml: other first embeddings, other
layers to begin with, other learning rates within the encoder.

    python -m benchmarks.variants CHANGE [CHANGE ...] -- ARGUMENTS_OF_XPT

parts=A+B        rows are made of these only: neighbours, translations, copies
lexicon=N        N of the translated pieces, drawn once, nested: the 300 are among the 1,000
holdout=N        without the pieces of every N-th translated word (benchmarks/probes.py asks for them)
static=N         static vectors from N tokens
dimensions=N     static vectors of N dimensions
map=procrustes   an orthogonal map instead of the kernel ridge, or map=ridge, a linear one
shuffled         the entries of each matrix of the seed's layers change places: their distribution stays, what they know goes
random-layers    the seed's layers begin as a random net's: matrices from N(0, initializer_range), biases 0, LayerNorms 1 and 0
rotated          the new embeddings are turned about their mean: how they lie to each other stays, how they lie to the encoder goes
permuted         the new embeddings change places among the pieces
turned=X         the new embeddings are turned towards the seed's: of translations (X: lexicon), of pieces of both vocabularies (X: shared)
layers=X         new layers' matrices are drawn from N(0, X), not N(0, initializer_range)
unfitted         near-identity layers have LayerNorms of scale 1 and shift 0
own-scale        the last near-identity layer gives back the encoder's states at their own scale, not at unit scale
unit-output      without a last adaptation layer: the seed's last LayerNorm gives its states at unit scale, as such a layer would
layerwise=X      the seed's top layer trains at X times the stage's rate, the one below at X^2 times, ... (Howard and Ruder 2018, ULMFiT)
"""

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge
from transformers import AutoModelForMaskedLM, BertConfig

from trainer import embedding_init, engine, static_vectors, surgery
from trainer.engine import StageEngine
from trainer.lexicon import read_lexicon, translated_pieces
from trainer.pieces import Pieces
from trainer.ranks import run_on_ranks
from trainer.static_vectors import unit_length
from trainer.xpt import main as post_train

Replacements = dict[tuple[Any, str], Any]  # (module or class, name of what is replaced): what takes its place


def linear_map(kind: str) -> Any:
    """A replacement of embedding_init._map_into. procrustes: orthogonal, between unit vectors, static ones padded with zeros to H."""

    def map_into(centred: np.ndarray, static: np.ndarray, translations: dict[int, list[int]]) -> np.ndarray:
        pieces = sorted(translations)
        directions = np.stack([centred[translations[number]].mean(axis=0) for number in pieces])
        if kind == "ridge":
            return unit_length(Ridge(alpha=1.0).fit(static[pieces], directions).predict(static))
        padded = np.pad(static, ((0, 0), (0, max(0, centred.shape[1] - static.shape[1]))))
        rotation, _ = orthogonal_procrustes(padded[pieces], unit_length(directions))
        return unit_length(padded @ rotation)

    return map_into


def only(kept: list[str]) -> Any:
    """A replacement of embedding_init._compose that takes these of its three kinds of rows."""
    compose = embedding_init._compose

    def composed(**rows: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        return compose(**{name: of_pieces if name in kept else {} for name, of_pieces in rows.items()})

    return composed


def fewer(chosen: Callable[[list[int], Pieces], Iterable[int]]) -> Any:
    """A replacement of embedding_init.translated_pieces that keeps what `chosen` takes of the sorted pieces that are no copies."""
    every = embedding_init.translated_pieces

    def translations(pairs: Any, english: Pieces, korean: Pieces) -> dict[int, list[int]]:
        found = every(pairs, english, korean)
        return {int(number): found[int(number)] for number in chosen(sorted(set(found) - set(korean.shared_with(english))), korean)}

    return translations


def discriminate(decay: float) -> Replacements:
    """Lower rates for lower layers of those between the first and the last one, which are the ITLs. decay: of one beside the one above."""
    whole = engine.parameter_groups

    def layer_of(name: str) -> int:
        found = re.search(r"layer\.(\d+)\.", name)
        return int(found[1]) if found else -1

    def groups(shapes: Any, *rest: Any) -> list[Any]:
        top = max(map(layer_of, shapes))
        found = []
        for group in whole(shapes, *rest):
            rates: dict[float, list[str]] = {}
            for name in group.names:
                layer = layer_of(name)
                rates.setdefault(decay ** (top - layer) if 0 < layer < top else 1.0, []).append(name)
            for factor, names in rates.items():
                factors[tuple(names)] = factor
                found.append(replace(group, names=tuple(names)))
        return found

    def set_learning_rate(self: StageEngine, rate: float) -> None:
        for group, own in zip(self._zero.optimizer.param_groups, self._groups, strict=True):
            group["lr"] = rate * factors[own.names]

    factors: dict[tuple[str, ...], float] = {}
    return {(engine, "parameter_groups"): groups, (StageEngine, "set_learning_rate"): set_learning_rate}


def without_fitting(fitted: Callable[..., None]) -> Callable[..., None]:
    """A replacement of surgery._pass_through whose LayerNorms stay as they are drawn."""

    def pass_through(base: Any, layer: int, tokens: torch.Tensor, unit_scale: bool) -> None:
        fitted(base, layer, tokens, unit_scale)
        for part in (base.encoder.layer[layer].attention.output, base.encoder.layer[layer].output):
            torch.nn.init.ones_(part.LayerNorm.weight)
            torch.nn.init.zeros_(part.LayerNorm.bias)

    return pass_through


def with_layers(operate: Callable[..., Any], change: Callable[[str, torch.Tensor, torch.Generator], None]) -> Callable[..., Any]:
    """A replacement of surgery.operate. change: is called with the name and each of the layers' weights; drawn by the run's seed."""

    def operated(seed: surgery.Seed, recipe: Any, *more: Any) -> Any:
        generator = torch.Generator().manual_seed(recipe.seed)
        for name, value in seed.weights.items():
            if seed.architecture.layer_of(name) is not None:
                change(name, value, generator)
        return operate(seed, recipe, *more)

    return operated


def shuffle(name: str, value: torch.Tensor, generator: torch.Generator) -> None:
    """LayerNorms and biases stay."""
    if value.dim() > 1:
        value.copy_(value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value))


def draw_anew(name: str, value: torch.Tensor, generator: torch.Generator) -> None:
    """As transformers begins a BERT."""
    if value.dim() > 1:
        value.normal_(0, BertConfig().initializer_range, generator=generator)
    else:
        value.fill_(1.0 if "LayerNorm.weight" in name else 0.0)


def with_embeddings(make: Callable[..., Any], change: Callable[[torch.Tensor, torch.Generator], torch.Tensor]) -> Callable[..., Any]:
    """A replacement of surgery.initial_embeddings. change: of the (V, H) rows that it makes."""

    def initial_embeddings(*arguments: Any) -> Any:
        word, details = make(*arguments)
        return change(word, torch.Generator().manual_seed(0)), details

    return initial_embeddings


def rotate(word: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random orthogonal map of the rows, less their mean."""
    turn, _ = torch.linalg.qr(torch.randn(word.shape[1], word.shape[1], generator=generator))
    return word.mean(0) + (word - word.mean(0)) @ turn


def permute(word: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return word[torch.randperm(len(word), generator=generator)]


def turned(make: Callable[..., Any], towards: str) -> Callable[..., Any]:
    """A replacement of surgery.initial_embeddings. towards: `lexicon` or `shared`."""

    def initial_embeddings(
        method: str, seed_embeddings: torch.Tensor, seed_tokenizer: Any, tokenizer: Any, corpus: Any, lexicon: Path, *more: Any
    ) -> Any:
        word, details = make(method, seed_embeddings, seed_tokenizer, tokenizer, corpus, lexicon, *more)
        english, korean, source = Pieces.of(seed_tokenizer), Pieces.of(tokenizer), seed_embeddings.float().numpy()
        if towards == "lexicon":
            meanings = translated_pieces(read_lexicon(lexicon), english, korean)
        else:
            meanings = {number: [same] for number, same in korean.shared_with(english).items()}
        rows = turned_towards(word.numpy(), list(meanings), np.stack([source[ids].mean(axis=0) for ids in meanings.values()]))
        specials = list(korean.special.values())  # the seed's own
        rows[specials] = word.numpy()[specials]
        return torch.from_numpy(rows), details | {"turned": len(meanings)}

    return initial_embeddings


def turned_towards(rows: np.ndarray, known: list[int], targets: np.ndarray) -> np.ndarray:
    """rows (V, H) after the orthogonal map about their mean that brings rows[known] nearest to targets (K, H) (Schoenemann 1966)."""
    middle = rows.mean(axis=0)
    turn, _ = orthogonal_procrustes(rows[known] - middle, targets - middle)
    found: np.ndarray = (middle + (rows - middle) @ turn).astype(np.float32)
    return found


class WiderModels:
    """A replacement of transformers' AutoModelForMaskedLM in surgery. std: of the layers' matrices."""

    from_pretrained = surgery.AutoModelForMaskedLM.from_pretrained

    def __init__(self, std: float) -> None:
        self.std = std

    def from_config(self, config: Any, **settings: Any) -> Any:
        model = AutoModelForMaskedLM.from_config(config, **settings)
        for name, value in model.named_parameters():
            if ".layer." in name and value.dim() > 1:
                value.data.mul_(self.std / config.initializer_range)
        return model


def with_unit_output(operate: Callable[..., Any]) -> Callable[..., Any]:
    """A replacement of surgery.operate."""

    def operated(seed: Any, recipe: Any, tokenizer: Any, corpus: Any) -> Any:
        model, report = operate(seed, recipe, tokenizer, corpus)
        with torch.no_grad():
            tokens = surgery._some_blocks(corpus, surgery.FITTED_LENGTH)
            scale = model.base_model(input_ids=tokens).last_hidden_state.square().mean().sqrt()
            last = model.base_model.encoder.layer[-1].output.LayerNorm
            last.weight.div_(scale)
            last.bias.div_(scale)
        return model, report

    return operated


def at_own_scale(fitted: Callable[..., None]) -> Callable[..., None]:
    """A replacement of surgery._pass_through."""
    return lambda base, layer, tokens, unit_scale: fitted(base, layer, tokens, unit_scale=False)


def drawn(count: int) -> Any:
    """A replacement of embedding_init.translated_pieces."""
    return fewer(lambda pieces, _: sorted(np.random.default_rng(0).permutation(pieces)[:count]))


def without_held_out(every: int) -> Any:
    """A replacement of embedding_init.translated_pieces."""
    return fewer(lambda pieces, korean: set(pieces) - set(embedding_init.held_out_pieces(pieces, korean, every)))


def sampled(tokens: int) -> Replacements:
    return {(static_vectors, "STATIC_TOKENS"): tokens, (static_vectors, "STRETCH"): min(static_vectors.STRETCH, tokens // 16)}


CHANGES: dict[str, Callable[[str], Replacements]] = {  # of its value; each is applied to what those before it left
    "parts": lambda value: {(embedding_init, "_compose"): only(value.split("+"))},
    "lexicon": lambda value: {(embedding_init, "translated_pieces"): drawn(int(value))},
    "holdout": lambda value: {(embedding_init, "translated_pieces"): without_held_out(int(value))},
    "static": lambda value: sampled(int(value)),
    "dimensions": lambda value: {(static_vectors, "DIMENSIONS"): int(value)},
    "map": lambda value: {(embedding_init, "_map_into"): linear_map(value)},
    "shuffled": lambda _: {(surgery, "operate"): with_layers(surgery.operate, shuffle)},
    "random-layers": lambda _: {(surgery, "operate"): with_layers(surgery.operate, draw_anew)},
    "rotated": lambda _: {(surgery, "initial_embeddings"): with_embeddings(surgery.initial_embeddings, rotate)},
    "permuted": lambda _: {(surgery, "initial_embeddings"): with_embeddings(surgery.initial_embeddings, permute)},
    "turned": lambda value: {(surgery, "initial_embeddings"): turned(surgery.initial_embeddings, value)},
    "layers": lambda value: {(surgery, "AutoModelForMaskedLM"): WiderModels(float(value))},
    "unfitted": lambda _: {(surgery, "_pass_through"): without_fitting(surgery._pass_through)},
    "own-scale": lambda _: {(surgery, "_pass_through"): at_own_scale(surgery._pass_through)},
    "unit-output": lambda _: {(surgery, "operate"): with_unit_output(surgery.operate)},
    "layerwise": lambda value: discriminate(float(value)),
}


def apply(change: str) -> None:
    """Change the modules of this process."""
    key, _, value = change.partition("=")
    if key not in CHANGES:
        sys.exit(f"error: no such change: {change}")
    for (place, name), replacement in CHANGES[key](value).items():
        assert hasattr(place, name), f"{place} has no {name} any more"
        setattr(place, name, replacement)


if __name__ == "__main__":
    end = sys.argv.index("--")
    for change in sys.argv[1:end]:
        apply(change)
    del sys.argv[1 : end + 1]
    run_on_ranks(post_train)
