"""The written-out passes against transformers' own, and the kernels' dropout against what dropout is."""

import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
)

from data_tools.errors import RunError
from trainer import cpu_kernels as kernels
from trainer.blocks import MaskedBatch
from trainer.forward import Encoder, supports, write_out_encoder
from trainer.mlm import MaskedLanguageModel, tie_output_bias

built = pytest.mark.skipif(not kernels.available(), reason="trainer/cpp was not built for this processor")
BATCH, LENGTH, VOCAB, HEADS = 3, 44, 61, 2


def make_model(
    kind: str, dtype: torch.dtype, tied: bool = True, dropout: float = 0.0, attention_dropout: float | None = None, pad: int = 1,
    seed: int = 0,
) -> MaskedLanguageModel:  # fmt: skip
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCAB, "hidden_size": 72, "num_hidden_layers": 3, "num_attention_heads": HEADS, "intermediate_size": 104}
    shape |= {"max_position_embeddings": 60, "pad_token_id": pad, "initializer_range": 0.2, "tie_word_embeddings": tied}
    shape |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout if attention_dropout is None else attention_dropout}
    shape |= {"layer_norm_eps": 0.05}
    model = BertForMaskedLM(BertConfig(**shape)) if kind == "bert" else RobertaForMaskedLM(RobertaConfig(**shape))
    with torch.no_grad():
        for parameter in model.parameters():  # LayerNorms and biases too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tie_output_bias(model)
    return MaskedLanguageModel(model.to(dtype)).train()


def batch(packed: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    rng = torch.Generator().manual_seed(1 + seed)
    selected = torch.sort(torch.randperm(BATCH * LENGTH, generator=rng)[:20])[0]
    segments = torch.sort(torch.randint(0, 4, (BATCH, LENGTH), generator=rng), dim=1, descending=True)[0] if packed else None
    tokens, labels = torch.randint(2, VOCAB, (BATCH, LENGTH), generator=rng), torch.randint(0, VOCAB, (20,), generator=rng)
    return tokens, selected, labels, segments


def gradients(model: MaskedLanguageModel, packed: bool, seed: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = model(*batch(packed, seed))
    (loss / 7).backward()
    return float(loss.detach()), {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def theirs(model: MaskedLanguageModel) -> MaskedLanguageModel:
    """The same parameters under transformers' forward pass."""
    other = MaskedLanguageModel(model.model).train()
    other._forward = None
    return other


@built
@pytest.mark.parametrize("packed", [False, True], ids=["contiguous", "sentences"])
@pytest.mark.parametrize("kind", ["roberta", "bert"])
@pytest.mark.parametrize("frozen", [(), ("layer.1.",), ("embeddings.", "layer.0."), ("head.", "cls.", "layer.2.")], ids=str)
def test_loss_and_gradients_are_those_of_transformers(kind: str, packed: bool, frozen: tuple[str, ...]) -> None:
    model = make_model(kind, torch.float32, tied="head." not in frozen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    (loss, ours), (expected, reference) = gradients(model, packed), gradients(theirs(model), packed)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert ours.keys() == reference.keys()
    for name, gradient in reference.items():
        # A key's bias moves all scores of a query alike: its gradient is rounding around zero.
        scale = reference[name.replace("key.bias", "query.bias")].abs().max()
        assert (ours[name] - gradient).abs().max() <= 2e-5 * scale, name


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_tokens_stand_where_transformers_puts_them(kind: str, pad: int) -> None:
    model, (tokens, selected, labels, _) = make_model(kind, torch.float32, pad=pad), batch(False)
    tokens = tokens.clamp(min=4)  # no padding
    logits = model.model(input_ids=tokens).logits.flatten(0, 1)[selected]
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    for one in (model, theirs(model)):
        assert one(tokens, selected, labels).item() == pytest.approx(expected.item(), rel=1e-5)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_gradients_the_loss_is_the_same(dtype: torch.dtype) -> None:
    """There the passes write over what only a backward pass would need."""
    model = make_model("roberta", dtype)
    with torch.no_grad():
        alone = [float(model(*batch(True))) for _ in range(2)]
    assert alone == 2 * [gradients(model, True)[0]]


@built
def test_nothing_selected_is_no_loss_and_no_gradient() -> None:
    model, (tokens, _, _, _), nothing = make_model("roberta", torch.float32), batch(False), torch.zeros(0, dtype=torch.long)
    loss = model(tokens, nothing, nothing)
    loss.backward()
    assert loss == 0 and not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@built
@pytest.mark.parametrize("packed", [False, True], ids=["contiguous", "sentences"])
def test_bfloat16_is_as_near_to_float32_as_transformers_is(packed: bool) -> None:
    """Of the two errors of one net the larger may be either's, by a quarter; over 24 nets they are alike."""
    ratios, shares = [], []
    for seed in range(24):
        _, exact = gradients(make_model("roberta", torch.float32, seed=seed), packed, seed)
        half = make_model("roberta", torch.bfloat16, seed=seed)
        ours, reference = (_distance(gradients(one, packed, seed)[1], exact) for one in (half, theirs(half)))
        ratios.append(ours / reference)
        shares.append(ours / _distance(dict.fromkeys(exact, torch.zeros(())), exact))
    assert statistics.geometric_mean(ratios) <= 1.05 and statistics.median(shares) < 0.05, (ratios, shares)


def _distance(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    return sum(float((found[name] - gradient).square().sum()) for name, gradient in exact.items()) ** 0.5


@built
def test_gradients_follow_the_dropout_that_was_drawn() -> None:
    """Whatever is dropped, the loss is a smooth function of the parameters: its slope along the gradient is the gradient's square."""
    model = make_model("roberta", torch.float32, dropout=0.3)

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        return model(*batch(False))

    model.zero_grad()
    first = loss()
    first.backward()
    assert first == loss(), "not reproducible"
    torch.manual_seed(4)
    assert first != model(*batch(False)), "the seed changes nothing"
    slope = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    step, values = 1e-3 / slope**0.5, []
    for direction in (1, -2):
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p += direction * step * p.grad
        values.append(float(loss().detach()))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=0.01)


@built
def test_the_same_is_dropped_in_bfloat16_as_in_float32() -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model("bert", dtype, dropout=0.3)
        torch.manual_seed(3)
        found.append(gradients(model, True)[1])
    exact, half = found
    difference = sum(float((half[name] - gradient).square().sum()) for name, gradient in exact.items()) ** 0.5
    assert difference < 0.3 * sum(float(gradient.square().sum()) for gradient in exact.values()) ** 0.5  # 1 or more when others are dropped


@built
def test_each_place_drops_at_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the embeddings and twice a layer at the one, in attention at the other."""
    rates: dict[str, list[int]] = {"norm": [], "attention": []}
    norm, attention = kernels.norm_forward, kernels.attention_forward

    def watched_norm(*given: Any, **named: Any) -> Any:
        rates["norm"] += [rate for rate in (named.get("before", 0), named.get("after", 0), *given[7:]) if rate]
        return norm(*given, **named)

    def watched_attention(*given: Any) -> Any:
        rates["attention"].append(given[4])
        return attention(*given)

    monkeypatch.setattr(kernels, "norm_forward", watched_norm)
    monkeypatch.setattr(kernels, "attention_forward", watched_attention)
    make_model("roberta", torch.float32, dropout=0.3, attention_dropout=0.1)(*batch(False))
    assert rates == {"norm": [kernels.threshold(0.3)] * 7, "attention": [kernels.threshold(0.1)] * 3}
    for dropout in ((0.3, 0.0), (0.0, 0.3)):
        model, losses = make_model("roberta", torch.float32, True, *dropout), set()
        for seed in (3, 4):
            torch.manual_seed(seed)
            losses.add(model(*batch(False)).item())
        assert len(losses) == 2, dropout


@built
@pytest.mark.parametrize("rate", [0.1, 0.25])
def test_dropout_keeps_its_rate_and_its_expectation(rate: float) -> None:
    rows, width = 4000, 96
    kept = kernels.threshold(rate)
    values, nothing, one = torch.ones(rows, width), torch.zeros(width), torch.ones(width)
    kernels.norm_forward(values, nothing, None, one, nothing, 1e-5, key=7, before=kept)  # values become dropout(1)
    share = (values > 0).double()
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(share.mean() - (1 - rate)) < 4 * deviation / values.numel() ** 0.5
    assert values.max() == pytest.approx(65536 / kept) and values.double().mean() == pytest.approx(1, abs=0.01)
    for dimension in (0, 1):  # no row and no column is special, and neighbours are independent
        counts = share.mean(dimension)
        assert (counts - (1 - rate)).abs().max() < 5 * deviation / share.shape[dimension] ** 0.5
        pairs = (share.narrow(dimension, 1, share.shape[dimension] - 1) * share.narrow(dimension, 0, share.shape[dimension] - 1)).mean()
        assert pairs == pytest.approx((1 - rate) ** 2, abs=0.005)
    assert abs(float((share[:, :16] * share[:, 16:32]).mean()) - (1 - rate) ** 2) < 0.01  # halves of the same random words


@built
def test_attention_drops_probabilities() -> None:
    """Zero queries: every probability is 1/L, so one-hot values of width L show each of them."""
    length = 64
    qkv = torch.zeros(8 * length, 3 * length)
    qkv[:, 2 * length :] = torch.eye(length).repeat(8, 1)
    out, _ = kernels.attention_forward(qkv, None, (8, length, 1), 5, kernels.threshold(0.1))
    share = (out > 0).double().mean()
    patterns = {bytes(pattern.numpy()) for pattern in (out > 0).view(8, -1)}
    assert len(patterns) == 8  # each block's own; and each head's:
    qkv = torch.zeros(length, 3 * 2 * length)
    qkv[:, 4 * length :] = torch.eye(length).repeat(1, 2)
    of_heads, _ = kernels.attention_forward(qkv, None, (1, length, 2), 5, kernels.threshold(0.1))
    assert not torch.equal(of_heads[:, :length], of_heads[:, length:])
    assert share == pytest.approx(0.9, abs=0.01) and out.max() == pytest.approx(1 / length * 65536 / kernels.threshold(0.1))


def test_without_the_library_the_model_computes_with_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False)
    model = make_model("roberta", torch.float32)
    assert model._forward is None
    assert gradients(model, True)[0] == gradients(theirs(model), True)[0]


def test_a_library_is_found_beside_the_package_or_not_at_all() -> None:
    assert kernels.available() == any(Path(kernels.__file__).parent.glob("cpu_library*.so"))


@built
def test_a_model_in_eval_mode_drops_nothing() -> None:
    model = make_model("bert", torch.float32, dropout=0.3)
    wrapped = MaskedLanguageModel(model.model.eval())
    assert wrapped(*batch(True)) == wrapped(*batch(True))


@built
@pytest.mark.parametrize(("blocks", "sentences", "tokens_each"), [(400, 5, 8), (1, 2000, 2)])
def test_positions_of_short_sentences_get_their_whole_gradient_in_bfloat16(blocks: int, sentences: int, tokens_each: int) -> None:
    """Hundreds of tokens stand at a position. Added up in bf16 the last ones would change nothing any more."""
    segments = torch.arange(1, sentences + 1).repeat_interleave(tokens_each)[None].repeat(blocks, 1)
    tokens = torch.randint(2, VOCAB, segments.shape, generator=torch.Generator().manual_seed(0))
    selected = torch.arange(0, tokens.numel(), 2)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model("roberta", dtype)
        model(tokens, selected, torch.full((len(selected),), 7), segments).backward()
        found[dtype] = next(p.grad.double() for name, p in model.named_parameters() if "position_embeddings" in name)
    exact, half = found.values()
    assert (half - exact).norm() < 0.04 * exact.norm()  # 0.27 when added up in bf16


@built
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7F800001, 0xFF800123])
def test_no_kind_of_nan_is_lost(bits: int) -> None:
    nan = torch.tensor([bits - (1 << 32) * (bits >> 31)], dtype=torch.int32).view(torch.float32)
    logits = torch.zeros(2, VOCAB)
    logits[0, 5] = nan
    losses, _ = kernels.cross_entropy(logits, torch.zeros(VOCAB), torch.tensor([1, 1]), False, False)
    assert losses.isnan().tolist() == [True, False]
    x = torch.zeros(1, 40)
    x[0, 20] = nan
    assert kernels.gelu_forward(x, torch.zeros(40)).isnan().sum() == 1
    qkv = torch.zeros(8, 3 * 16)
    qkv[2, 3] = nan
    assert kernels.attention_forward(qkv, None, (1, 8, 1), 0, kernels.threshold(0.0))[0][2].isnan().all()


@built
def test_a_label_beyond_the_vocabulary_is_not_written_through() -> None:
    model, (tokens, selected, labels, _) = make_model("roberta", torch.float32), batch(False)
    for wrong in (VOCAB, 65535, -1):
        labels[3] = wrong
        with pytest.raises(RunError, match="the corpus is damaged"):
            model(tokens, selected, labels)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=built), False])
def test_a_token_beyond_the_vocabulary_is_the_corpuss(compiled: bool) -> None:
    model = make_model("roberta", torch.float32)
    for name in ("input_ids", "labels"):
        tokens, selected, labels, _ = batch(False)
        damaged = MaskedBatch(tokens, selected, labels)
        getattr(damaged, name).view(-1)[3] = VOCAB
        with pytest.raises(RunError, match="the corpus is damaged"):
            (model if compiled else theirs(model)).loss(damaged, torch.device("cpu"))


def test_a_library_that_does_not_load_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(kernels.ctypes, "CDLL", fails)
    assert kernels._library.__wrapped__() is None


@built
def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels._library.__wrapped__() is not None
    monkeypatch.setattr(kernels.hashlib, "sha256", lambda data: SimpleNamespace(hexdigest=lambda: "of other sources"))
    assert kernels._library.__wrapped__() is None


def make_classifier(config: type = BertConfig, attention: str = "eager", **fields: Any) -> Any:
    """A classifier of five labels, of transformers."""
    shape = {"vocab_size": VOCAB, "hidden_size": 80, "num_hidden_layers": 3, "num_attention_heads": HEADS, "intermediate_size": 104}
    settings = config(**shape, max_position_embeddings=60, num_labels=5, **fields)
    return AutoModelForSequenceClassification.from_config(settings, attn_implementation=attention)


@built
def test_on_another_device_a_classifier_computes_by_transformers() -> None:
    """The kernels read CPU memory. The device `meta` stands for a GPU: it has no memory at all."""
    model = make_classifier()
    write_out_encoder(model, first_only=False)
    assert isinstance(model.base_model.encoder.forward, Encoder)
    model.to("meta")
    hidden = torch.zeros(BATCH, LENGTH, 80, device="meta")
    assert model.base_model.encoder(hidden, None).last_hidden_state.shape == hidden.shape
    with pytest.raises(AssertionError, match="xpt_column_sums"):
        kernels.column_sums(torch.zeros(2, 3, device="meta"))
    other = make_classifier(attention="sdpa")
    write_out_encoder(other, first_only=False)
    assert not isinstance(other.base_model.encoder.forward, Encoder)  # its masks are others


@built
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("config", [BertConfig, RobertaConfig, XLMRobertaConfig, ElectraConfig], ids=lambda config: config.model_type)
def test_a_classifier_over_padded_rows_is_that_of_transformers(config: type, first_only: bool) -> None:
    torch.manual_seed(0)
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    model = make_classifier(config, pad_token_id=1, initializer_range=0.2, embedding_size=80, **dry).train()
    tokens, mask = torch.randint(2, VOCAB, (BATCH, LENGTH)), torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, 7:], mask[2, 30:] = 0, 0
    tokens[mask == 0] = 1
    found = []
    for written_out in (False, True):
        if written_out:
            write_out_encoder(model, first_only)
            assert isinstance(model.base_model.encoder.forward, Encoder)
        model.zero_grad(set_to_none=True)
        logits = model(input_ids=tokens, attention_mask=mask).logits
        (logits * torch.arange(5)).sum().backward()
        found.append((logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (expected, reference), (ours, gradients_) = found
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert gradients_.keys() == reference.keys()
    largest = max(float(gradient.abs().max()) for gradient in reference.values())
    for name, gradient in reference.items():  # that of a key's bias is 0 but for rounding
        torch.testing.assert_close(gradients_[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)
    states = model.base_model(input_ids=tokens, attention_mask=mask)[0]
    assert states.shape == (BATCH, 1 if first_only else LENGTH, 80)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = model(input_ids=tokens, attention_mask=mask).logits
    assert 0 < (coarse - expected).abs().max() < 0.05 * expected.abs().max()


@built
def test_a_classifier_drops_out_in_training_alone() -> None:
    model = make_classifier(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    write_out_encoder(model, first_only=False)
    encoder, states = model.base_model.encoder, torch.randn(BATCH, LENGTH, 80)
    for training in (True, False):
        encoder.train(training)
        found = []
        for seed in (3, 4):
            torch.manual_seed(seed)
            found.append(encoder(states, None).last_hidden_state)
        assert torch.equal(*found) != training


def test_what_is_not_computed_here_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: True)
    model = make_model("bert", torch.float32).model
    assert supports(model)
    for name, value in {"hidden_act": "gelu_new", "is_decoder": True, "position_embedding_type": "relative_key"}.items():
        before = getattr(model.config, name, "absolute")
        setattr(model.config, name, value)
        assert not supports(model), name
        setattr(model.config, name, before)
    assert supports(model) and not supports(model.to(torch.float64))
