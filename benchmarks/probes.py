"""What post-training changed in a model: how far layers moved, which pieces lie near each other, whether words find their translations.

    python -m benchmarks.probes RUN LEXICON        # prints JSON; RUN holds checkpoints/step-0 and the last one

* movement: for each layer |after - before| / |before| over its weight matrices (Frobenius norm).
* retrieval: the share of the pieces of every tenth translated Korean word for which a translation is the nearest, or among the 10 nearest,
  of all English words, before and after; by the cosine between its embedding and those of the seed, both centred. The variant holdout=10
  of benchmarks/variants.py keeps these words out of the initialisation.
* neighbours: the nearest Korean pieces of some frequent ones, before and after.
* surgery: what the surgery reported, e.g. how well the map of the embeddings finds translations that it was not given.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.command import paths
from data_tools.corpus import Corpus
from trainer.architecture import architecture_of
from trainer.blocks import ContiguousBlocks, SpecialIds
from trainer.checkpoint import Checkpoint, checkpoint_paths
from trainer.embedding_init import held_out_pieces
from trainer.lexicon import read_lexicon, translated_pieces
from trainer.pieces import Pieces
from trainer.recipe import Masking
from trainer.stages import split_parts
from trainer.static_vectors import unit_length
from trainer.surgery import load_seed

TEST_BLOCKS = 512
SHOWN, SKIPPED = 12, 200  # pieces that are shown; the most frequent ones before them are endings and signs


def weights(checkpoint: Checkpoint, names: list[str]) -> list[np.ndarray]:
    return [value.float().numpy().copy() for _, value, _ in checkpoint.entries(names)]


def movement(before: Checkpoint, after: Checkpoint) -> dict[str, float]:
    """{layer or part: relative distance}."""
    config = after.state["model_config"]
    itl = after.state["recipe"]["surgery"]["itl"]
    parts = split_parts(after.shapes, architecture_of(config), config["num_hidden_layers"], itl)
    groups = {"itl": parts.itl, **{f"layer {n}": names for n, names in enumerate(parts.layers)}}
    found = {}
    for label, names in groups.items():
        matrices = [name for name in names if len(after.shapes[name]) == 2]
        if matrices:
            old, new = weights(before, matrices), weights(after, matrices)
            far = sum(float(((a - b) ** 2).sum()) for a, b in zip(old, new, strict=True))
            found[label] = round((far / sum(float((a**2).sum()) for a in old)) ** 0.5, 4)
    return found


def retrieval(rows: np.ndarray, seed: Any, korean: Pieces, lexicon: Path) -> dict[str, float]:
    """top1, top10: shares of the held-out pieces."""
    english = Pieces.of(seed.tokenizer)
    source = seed.weights[seed.architecture.word_embeddings].float().numpy()
    words = english.words()
    translated = translated_pieces(read_lexicon(lexicon), english, korean)
    held_out = held_out_pieces(set(translated) - set(korean.shared_with(english)), korean)
    similarity = unit_length(rows - rows.mean(0))[held_out] @ unit_length(source - source.mean(0))[words].T
    nearest = words[np.argsort(-similarity, axis=1)[:, :10]]
    hits = np.array([np.isin(row, translated[piece]) for piece, row in zip(held_out, nearest, strict=True)])
    return {"held_out": len(held_out), "top1": round(float(hits[:, 0].mean()), 4), "top10": round(float(hits.any(axis=1).mean()), 4)}


def neighbours(rows: np.ndarray, korean: Pieces) -> dict[str, list[str]]:
    """Of the first words of two syllables or more; SentencePiece orders ids by frequency."""
    texts = {number: text for (initial, text), number in korean.ids.items() if initial and len(text) > 1 and "가" <= text[0] <= "힣"}
    numbers = sorted(texts)
    unit = unit_length(rows - rows.mean(0))[numbers]
    asked = range(SKIPPED, SKIPPED + SHOWN)
    nearest = np.argsort(-(unit[SKIPPED : SKIPPED + SHOWN] @ unit.T), axis=1)[:, 1:6]
    return {texts[numbers[place]]: [texts[numbers[other]] for other in row] for place, row in zip(asked, nearest, strict=True)}


def probe(run: Path, lexicon: Path) -> dict[str, Any]:
    """All of it. run: with its first and its last checkpoint."""
    paths = {int(path.name.removeprefix("step-")): path for path in checkpoint_paths(run)}
    before, after = (Checkpoint.open(paths[step], verify=False) for step in (min(paths), max(paths)))
    recipe = after.state["recipe"]
    transformers_logging.disable_progress_bar()
    seed, tokenizer = load_seed(recipe["seed_model"]), AutoTokenizer.from_pretrained(run / "model")
    korean = Pieces.of(tokenizer)
    tables = [weights(checkpoint, [seed.architecture.word_embeddings])[0] for checkpoint in (before, after)]
    return {
        "surgery": after.state["surgery"],
        "movement": movement(before, after),
        "retrieval": {when: retrieval(rows, seed, korean, lexicon) for when, rows in zip(("before", "after"), tables, strict=True)},
        "neighbours": {when: neighbours(rows, korean) for when, rows in zip(("before", "after"), tables, strict=True)},
    }


def test_loss(model_folder: Path, corpus_path: Path) -> float:
    """`loss_on_test` of an exported model."""
    transformers_logging.disable_progress_bar()
    return loss_on_test(AutoModelForMaskedLM.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder), corpus_path)


def loss_on_test(model: Any, tokenizer: Any, corpus_path: Path) -> float:
    """By transformers alone in fp32: cross-entropy of the hidden tokens of TEST_BLOCKS blocks spread over the test split, of which
    nothing was chosen. 15 % are hidden, whatever the run hid."""
    torch.set_num_threads(1)
    blocks = ContiguousBlocks(Corpus.open(corpus_path).split("test"), 128, SpecialIds.of(tokenizer), Masking(), 0)
    chosen = np.arange(TEST_BLOCKS) * blocks.num_blocks // TEST_BLOCKS
    losses, count = 0.0, 0
    with torch.inference_mode():
        for begin in range(0, TEST_BLOCKS, 16):
            batch = blocks.validation(chosen[begin : begin + 16])
            logits = model(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.selected]
            losses += torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum").item()
            count += len(batch.labels)
    return losses / count


if __name__ == "__main__":
    print(json.dumps(probe(*paths(__doc__, "RUN", "LEXICON")), ensure_ascii=False, indent=1))
