"""The batches: packing against a plain re-reading of the stream, masks against their distribution, order against coverage."""

import dataclasses
import itertools
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForMaskedLM, BertConfig, RobertaConfig
from transformers.masking_utils import flash_attention_mask

from data_tools.corpus import Corpus
from data_tools.errors import UserError
from tests.tiny import make_corpus
from trainer.blocks import PACKINGS, ContiguousBlocks, MaskedBatch, SentenceBlocks, SpecialIds, best_fit, corpus_tokenizer, samples_of
from trainer.masking import block_keys, dropout_seed, mask_tokens
from trainer.mlm import MaskedLanguageModel, build_model
from trainer.recipe import Masking

SPECIAL = SpecialIds(bos=0, pad=1, eos=2, mask=4, count=5, vocab_size=1000)


def make_split(seed: int = 0, documents: int = 40) -> SimpleNamespace:
    rng = np.random.default_rng(seed)
    sizes, index = [], [0]
    for _ in range(documents):
        sizes += rng.integers(1, 12, rng.integers(1, 6)).tolist()
        index.append(len(sizes))
    tokens = rng.integers(5, 1000, sum(sizes)).astype(np.uint16)
    offsets = tokens.itemsize * (np.cumsum(sizes) - sizes)
    return SimpleNamespace(
        tokens=tokens, sizes=np.array(sizes, dtype=np.int32), offsets=offsets, document_index=np.array(index), path="x.bin"
    )


def plain_stream(split: SimpleNamespace) -> list[int]:
    stream, token = [], 0
    for first, last in zip(split.document_index, split.document_index[1:], strict=False):
        for size in split.sizes[first:last]:
            stream += split.tokens[token : token + size].tolist()
            token += size
        stream.append(SPECIAL.eos)
    return stream


def test_blocks_are_the_stream_cut_in_pieces() -> None:
    split = make_split()
    blocks, stream = ContiguousBlocks(split, 16, SPECIAL, Masking(), 0), plain_stream(split)
    assert blocks.num_blocks == len(stream) // 14
    found = blocks.read(np.arange(blocks.num_blocks)[::-1])[0][::-1]
    expected = [[0, *stream[k * 14 : (k + 1) * 14], 2] for k in range(blocks.num_blocks)]
    assert found.tolist() == expected


def test_sentences_stand_side_by_side_each_once_and_whole() -> None:
    split = make_split(documents=400)
    split.sizes[7], split.sizes[8] = 12 + split.sizes[7] + split.sizes[8] - 13, 1  # longer than a block: cut
    blocks = SentenceBlocks(split, 16, SPECIAL, Masking(), 0)
    expected, token = [], 0
    for size in split.sizes.tolist():
        sentence = split.tokens[token : token + size].tolist()
        expected += [sentence[start : start + 14] for start in range(0, size, 14)]
        token += size
    wanted = np.random.default_rng(1).permutation(blocks.num_blocks)
    tokens, segments = blocks.read(wanted)
    found = []
    for row, marks in zip(tokens.tolist(), segments.tolist(), strict=True):
        for number in range(1, max(marks) + 1):
            here = [place for place, mark in enumerate(marks) if mark == number]
            assert here == list(range(here[0], here[-1] + 1)) and row[here[0]] == SPECIAL.bos and row[here[-1]] == SPECIAL.eos
            found.append([row[place] for place in here[1:-1]])
        padding = [row[place] for place, mark in enumerate(marks) if mark == 0]
        assert set(padding) <= {SPECIAL.pad} and marks[len(marks) - len(padding) :] == [0] * len(padding)
    assert sorted(found) == sorted(expected)
    assert (segments == 0).mean() < 0.03
    again = blocks.read(wanted[5:7])
    assert (again[0] == tokens[5:7]).all() and (again[1] == segments[5:7]).all()


def test_best_fit_is_near_the_optimum() -> None:
    widths = np.random.default_rng(0).integers(3, 80, 20_000)
    items, ends = best_fit(widths, 128)
    assert sorted(items.tolist()) == list(range(20_000))
    loads = np.add.reduceat(widths[items], np.concatenate([[0], ends[:-1]]))
    assert loads.max() <= 128 and len(ends) <= 1.01 * widths.sum() / 128


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_sentence_among_others_has_the_loss_that_it_has_alone(kind: str) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 1000, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(**shape) if kind == "bert" else RobertaConfig(**shape, max_position_embeddings=40, pad_token_id=1)
    built = build_model(config.to_dict(), 0.0, torch.device("cpu"), torch.float32)
    built.init_weights()
    model = MaskedLanguageModel(built).eval()
    batch = SentenceBlocks(make_split(), 16, SPECIAL, Masking(rate=0.4), 0).training(np.arange(6))
    assert batch.segments is not None and batch.segments.max() > 1
    alone, flat = 0.0, dict(zip(batch.selected.tolist(), batch.labels.tolist(), strict=True))
    for row in range(6):
        for number in range(1, int(batch.segments[row].max()) + 1):
            here = torch.nonzero(batch.segments[row] == number).reshape(-1)
            asked = [place for place, at in enumerate(here.tolist()) if row * 16 + at in flat]
            labels = torch.tensor([flat[row * 16 + int(here[place])] for place in asked], dtype=torch.long)
            one = MaskedBatch(batch.input_ids[row][here][None], torch.tensor(asked, dtype=torch.long), labels)
            alone += float(model.loss(one, torch.device("cpu")).detach())
    assert model.loss(batch, torch.device("cpu")).item() == pytest.approx(alone, rel=1e-5)


def test_every_epoch_visits_every_block_once_in_another_order() -> None:
    blocks = ContiguousBlocks(make_split(), 16, SPECIAL, Masking(), 3)
    n = blocks.num_blocks
    epochs, visited = blocks.place(np.arange(3 * n))
    assert epochs.tolist() == np.repeat([0, 1, 2], n).tolist()
    orders = visited.reshape(3, n)
    assert all(sorted(order.tolist()) == list(range(n)) for order in orders)
    assert len({tuple(order) for order in orders.tolist()} | {tuple(range(n))}) == 4


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("world_size", "micro"), [(1, 24), (1, 4), (2, 4), (4, 2), (3, 1)])
def test_any_split_of_the_batch_holds_the_same_samples_and_masks(world_size: int, micro: int, packing: str) -> None:
    blocks = PACKINGS[packing](make_split(), 16, SPECIAL, Masking(rate=0.3), 7)
    numbers = np.concatenate(
        [part for rank in range(world_size) for part in samples_of(5, 24, micro, 24 // micro // world_size, rank, world_size)]
    )
    assert sorted(numbers.tolist()) == list(range(120, 144))
    whole, split = blocks.training(np.arange(120, 144)), blocks.training(numbers)
    row_of = {number: row for row, number in enumerate(numbers.tolist())}
    reordered = split.input_ids[[row_of[number] for number in range(120, 144)]]
    assert (reordered == whole.input_ids).all()
    assert sorted(split.labels.tolist()) == sorted(whole.labels.tolist())
    plain, _ = blocks.read(blocks.place(np.arange(120, 144))[1])
    assert whole.labels.tolist() == plain.reshape(-1)[whole.selected].tolist()  # what was there before it was masked


@pytest.mark.parametrize("packing", PACKINGS)
def test_validation_hides_the_same_tokens_whatever_the_seed(packing: str) -> None:
    one, other = (PACKINGS[packing](make_split(), 16, SPECIAL, Masking(rate=0.3), seed) for seed in (0, 7))
    numbers = np.arange(8)
    assert (one.validation(numbers).input_ids == other.validation(numbers).input_ids).all()
    assert (one.training(numbers).input_ids != other.training(numbers).input_ids).any()


def test_masks_have_the_shares_that_the_recipe_names_and_spare_special_tokens() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1000, (400, 512))
    keys = block_keys(1, np.zeros(400, dtype=np.int64), np.arange(400))
    inputs, selected = mask_tokens(tokens, keys, Masking(), SPECIAL.mask, SPECIAL.count, SPECIAL.vocab_size)
    before, after = tokens.reshape(-1), inputs.reshape(-1)
    assert (before[selected] >= SPECIAL.count).all()
    untouched = np.setdiff1d(np.arange(before.size), selected)
    assert (before[untouched] == after[untouched]).all()
    eligible = (before >= SPECIAL.count).sum()
    assert len(selected) / eligible == pytest.approx(0.15, abs=0.004)
    became_mask = after[selected] == SPECIAL.mask
    stayed = after[selected] == before[selected]
    assert became_mask.mean() == pytest.approx(0.8, abs=0.01) and stayed.mean() == pytest.approx(0.1, abs=0.01)
    replaced = after[selected][~became_mask & ~stayed]
    assert replaced.min() >= SPECIAL.count and replaced.max() < SPECIAL.vocab_size
    assert np.histogram(replaced, bins=5, range=(5, 1000))[0].std() < 0.1 * len(replaced) / 5 * 2
    columns = np.bincount(selected % 512, minlength=512)
    assert columns.std() == pytest.approx(np.sqrt(400 * 0.15 * 0.85), rel=0.2)  # no place is favoured


def test_masks_change_with_the_epoch_and_the_seed() -> None:
    tokens = np.full((1, 2000), 7)
    picked = set()
    for seed, epoch, block in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)]:
        keys = block_keys(seed, np.array([epoch]), np.array([block]))
        picked.add(tuple(mask_tokens(tokens, keys, Masking(), 4, 5, 1000)[1].tolist()))
    assert len(picked) == 4
    common = set.intersection(*(set(p) for p in picked))
    assert len(common) < 10  # four independent draws share 2000 * 0.15**4 = 1


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"\.bin: \d+ tokens, less than one block"):
        ContiguousBlocks(make_split(documents=1), 512, SPECIAL, Masking(), 0)


def attend_by_hand(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **given: Any
) -> Any:
    """What flash attention for variable lengths computes, a sequence at a time. query, key, value: (1, heads, all tokens, width)."""
    assert mask is None and torch.equal(given["cu_seq_lens_q"], given["cu_seq_lens_k"])
    places = given["cu_seq_lens_q"].tolist()
    assert given["max_length_q"] == given["max_length_k"] == max(b - a for a, b in pairwise(places)) and places[-1] == query.shape[2]
    parts = [
        (query[:, :, a:b] @ key[:, :, a:b].transpose(2, 3) * scaling).softmax(-1) @ value[:, :, a:b] for a, b in pairwise(places)
    ]  # fmt: skip
    return torch.cat(parts, dim=2).transpose(1, 2), None


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig])
def test_flash_attention_is_given_what_the_mask_says(kind: type[BertConfig] | type[RobertaConfig]) -> None:
    """The GPU's way to keep sentences apart, with the kernel replaced by a plain one."""
    AttentionInterface.register("by_hand", attend_by_hand)
    AttentionMaskInterface.register("by_hand", flash_attention_mask)
    config = kind(vocab_size=1000, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, pad_token_id=1)
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager").eval()
    masked = MaskedLanguageModel(model)
    masked._forward = None  # transformers' own pass
    batch = SentenceBlocks(make_split(), 32, SPECIAL, Masking(), 0).training(np.arange(4))
    with torch.no_grad():
        expected = masked.loss(batch, torch.device("cpu"))
        model.set_attn_implementation("by_hand")
        masked._flash = True
        assert torch.allclose(masked.loss(batch, torch.device("cpu")), expected, rtol=1e-5)


def test_dropout_differs_from_micro_batch_to_micro_batch() -> None:
    places = list(itertools.product((0, 1), (0, 1, 2), (0, 1, 7)))  # seed, batch, micro-batch
    seeds = [dropout_seed(*place) for place in places]
    assert seeds == [dropout_seed(*place) for place in places]
    assert len({seed % 2**32 for seed in seeds}) == len(places)  # as much as torch's CPU generator reads


def test_a_training_step_draws_its_dropout_by_seed_batch_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import xpt

    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    ranks = SimpleNamespace(device=torch.device("cpu"), beat=lambda _: None, world_size=2, rank=1)
    engine = SimpleNamespace(backward=lambda *_: torch.zeros(()))
    for batch_number in (4, 5):
        run = SimpleNamespace(recipe=SimpleNamespace(seed=9))
        xpt.train_step(run, ranks, engine, batch_number, [None, None], 1.0)  # type: ignore[arg-type, list-item]
    assert seeds == [dropout_seed(9, batch_number, place) for batch_number in (4, 5) for place in (1, 3)]


def test_a_damaged_tokenizer_is_the_corpuss(tmp_path: Path) -> None:
    corpus = Corpus.open(make_corpus(tmp_path / "corpus"))
    with pytest.raises(UserError, match=r"corpus .*: its tokenizer has 65 pieces, its manifest says 66; prepare it anew"):
        corpus_tokenizer(dataclasses.replace(corpus, manifest={**corpus.manifest, "vocab_size": 66}))
    assert len(corpus_tokenizer(corpus)) == 65
    file = corpus.tokenizer_dir / "tokenizer.json"
    file.write_bytes(b" " * file.stat().st_size)
    with pytest.raises(UserError, match=r"tokenizer: expected the corpus's tokenizer, found none that loads: .*; prepare it anew"):
        corpus_tokenizer(Corpus.open(tmp_path / "corpus"))
