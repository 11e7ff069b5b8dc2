"""The forward and backward pass of a RoBERTa or BERT encoder on CPU, over the parameters of a `transformers` model.

Same numbers as `transformers`' own (tests/test_forward.py), computed with fewer passes over memory: see docs/performance.md. Between
the matrix multiplications, which stay PyTorch's, everything is done by the kernels of trainer/cpu_kernels.py, and each encoder layer
is one autograd function with its derivatives written out. Of a layer are kept: its input, queries, keys and values, the output of the
attention, the sums before both LayerNorms, the first LayerNorm's output, and what goes into GELU: 12 H numbers a token. Behind the last
layer's attention only the positions that the head looks at are computed.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, ModelOutput

from data_tools.errors import RunError
from trainer import cpu_kernels as kernels
from trainer.architecture import architecture_of


def supports(model: PreTrainedModel) -> bool:
    """Whether this file can compute the model's encoder: the kernels are built, and its configuration, device and type are theirs."""
    config = model.config
    plain = config.hidden_act == "gelu" and not config.is_decoder and getattr(config, "position_embedding_type", "absolute") == "absolute"
    return plain and kernels.available() and model.device.type == "cpu" and model.dtype in (torch.float32, torch.bfloat16)


class Forward:
    """Loss of a `...ForMaskedLM` whose parameters are looked up anew at every call."""

    def __init__(self, model: PreTrainedModel) -> None:
        architecture = architecture_of(model.config)
        base: Any = model.get_submodule(architecture.base)
        self._embeddings, self._layers = base.embeddings, base.encoder.layer
        names = (architecture.head_dense, architecture.head_norm, architecture.decoder)
        parts: list[Any] = [model.get_submodule(name) for name in names]
        self._head_dense, self._head_norm, self._decoder = parts
        self._config = model.config
        self._tied = self._decoder.weight is self._embeddings.word_embeddings.weight

    def loss(
        self, input_ids: torch.Tensor, positions: torch.Tensor, selected: torch.Tensor, labels: torch.Tensor,
        segments: torch.Tensor | None, training: bool,
    ) -> torch.Tensor:  # fmt: skip
        """Shapes as in `MaskedLanguageModel.forward`; positions: (1 or B, L), rows of the position table. Returns a float32 scalar."""
        config = self._config
        hidden_rate, attention_rate = _thresholds(config, training)
        keys = torch.randint(2**62, (1 + 3 * len(self._layers),)).tolist()  # of every dropout
        table = self._embeddings
        places = table.position_embeddings.weight
        separate = segments is not None  # a position stands in a block more than once: PyTorch would add hundreds of gradients up in bf16
        at_places = _Lookup.apply(places, positions, None) if separate else functional.embedding(positions, places)
        of_output: list[torch.Tensor] | None = [] if self._tied else None
        z = _Lookup.apply(table.word_embeddings.weight, input_ids, of_output) + at_places + table.token_type_embeddings.weight[0]
        norm = table.LayerNorm
        x = _EmbeddingNorm.apply(z.flatten(0, 1), norm.weight, norm.bias, norm.eps, keys[0], hidden_rate)
        shape = (*input_ids.shape, config.num_attention_heads)
        x = _run_layers(self._layers, x, segments, shape, keys[1:], hidden_rate, attention_rate, selected)
        head = (self._head_dense.weight, self._head_dense.bias, self._head_norm.weight, self._head_norm.bias)
        settings = self._head_norm.eps, torch.is_grad_enabled()
        return _Head.apply(x, labels, settings, of_output, *head, self._decoder.weight, self._decoder.bias)


class Encoder:
    """Takes the place of an encoder's `forward` in a `transformers` model with any head: padded rows, fp32 weights under bf16 autocast.

    first_only: the head looks at the first token of each row alone, so that the last layer gives back no other."""

    def __init__(self, encoder: Any, config: PretrainedConfig, first_only: bool) -> None:
        self._encoder, self._config, self._first_only = encoder, config, first_only
        self._theirs = encoder.forward

    def __call__(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **unused: Any) -> ModelOutput:
        """hidden_states: (B, L, H); what comes back is (B, L, H), or (B, 1, H). attention_mask: (B, 1, 1 or L, L), as eager attention has
        it: 0 where a token is seen, else very low.

        What padding itself becomes differs from transformers'; no head may look at it. Moved to another device, the model computes by
        transformers again.
        """
        if hidden_states.device.type != "cpu":
            theirs: ModelOutput = self._theirs(hidden_states, attention_mask, **unused)
            return theirs
        hidden_rate, attention_rate = _thresholds(self._config, self._encoder.training)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden_states.dtype
        segments = None if attention_mask is None else (attention_mask[:, 0, 0] == 0).long()
        keys = torch.randint(2**62, (3 * len(self._encoder.layer),)).tolist()
        x = hidden_states.to(dtype).flatten(0, 1).contiguous()
        rows, length, width = hidden_states.shape
        shape = (rows, length, self._config.num_attention_heads)
        selected = torch.arange(0, rows * length, length) if self._first_only else None
        x = _run_layers(self._encoder.layer, x, segments, shape, keys, hidden_rate, attention_rate, selected)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=x.view(rows, -1, width))


def write_out_encoder(model: PreTrainedModel, first_only: bool) -> None:
    """Let the encoder of a BERT-like model compute by this file, where it can: on CPU, with eager attention."""
    base: Any = model.base_model
    known = model.config.model_type in ("bert", "roberta", "xlm-roberta", "electra")
    if known and supports(model) and model.config._attn_implementation == "eager":
        base.encoder.forward = Encoder(base.encoder, model.config, first_only)


def _thresholds(config: PretrainedConfig, training: bool) -> tuple[int, int]:
    """Of hidden states' dropout and of attention's; off when not training."""
    hidden, attention = config.hidden_dropout_prob, config.attention_probs_dropout_prob
    return kernels.threshold(hidden * training), kernels.threshold(attention * training)


def _run_layers(
    layers: Any,
    x: torch.Tensor,
    segments: torch.Tensor | None,
    shape: tuple[int, ...],
    keys: list[int],
    hidden_rate: int,
    attention_rate: int,
    selected: torch.Tensor | None = None,
) -> torch.Tensor:
    """x: (B*L, H) -> the same, or (S, H) with `selected`, (S,) rows of x. shape: B, L, heads; keys: three of each layer.

    Parameters of another type are cast to that of x, those of LayerNorms and the residual stream, too, which autocast on CPU leaves in
    fp32."""
    for number, layer in enumerate(layers):
        eps, own_keys = layer.output.LayerNorm.eps, keys[3 * number : 3 * number + 3]
        settings = (shape, eps, own_keys, hidden_rate, attention_rate, torch.is_grad_enabled())  # within a function it never is
        wanted = selected if number == len(layers) - 1 else None
        x = _Layer.apply(x, segments, wanted, settings, *(parameter.to(x.dtype) for parameter in _layer_parameters(layer)))
    return x


def _layer_parameters(layer: Any) -> list[torch.Tensor]:
    attention = layer.attention
    modules = (
        attention.self.query, attention.self.key, attention.self.value, attention.output.dense, attention.output.LayerNorm,
        layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm,
    )  # fmt: skip
    return [parameter for module in modules for parameter in (module.weight, module.bias)]


class _Lookup(torch.autograd.Function):
    """weight[ids]. of_output: a list that holds the same weight's gradient as output matrix, when the backward pass comes here; the rows
    that were looked up are added to it in place, instead of a second matrix of that size, mostly zeros, and a sum of the two."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor, of_output: list[torch.Tensor] | None) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.of_output, ctx.rows = of_output, len(weight)
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        (ids,) = ctx.saved_tensors
        seen, places = ids.flatten().unique(return_inverse=True)
        sums = torch.zeros(len(seen), d_out.shape[-1]).index_add_(0, places, d_out.flatten(0, 1).float())
        if ctx.of_output:
            total = ctx.of_output.pop()  # autograd has it already: what is added counts, and nothing is returned
            total[seen] += sums.to(total.dtype)
            return None, None, None
        return d_out.new_zeros(ctx.rows, d_out.shape[-1]).index_copy_(0, seen, sums.to(d_out.dtype)), None, None


class _EmbeddingNorm(torch.autograd.Function):
    """dropout(LayerNorm(z)). z: (M, H), which must not be needed elsewhere."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float, key: int, kept: int) -> torch.Tensor:
        z = z.contiguous()
        out, statistics = kernels.norm_forward(z, None, None, gamma, beta, epsilon, key, after=kept)
        ctx.save_for_backward(z, gamma, statistics)
        ctx.settings = key, kept
        return out

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        z, gamma, statistics = ctx.saved_tensors
        key, kept = ctx.settings
        d_z, _, sums = kernels.norm_backward(d_out.contiguous(), None, z, None, gamma, statistics, True, key, after=kept)
        assert sums is not None
        d_gamma, d_beta, _ = sums.to(gamma.dtype)
        return d_z, d_gamma, d_beta, None, None, None


class _Layer(torch.autograd.Function):
    """One encoder layer. x: (M, H), M = B*L; returns rows `selected`, (S,), of its output, or all."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, segments: torch.Tensor | None, selected: torch.Tensor | None, settings: tuple[Any, ...],
        *parameters: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        shape, epsilon, keys, hidden_rate, attention_rate, gradients = settings
        w_q, b_q, w_k, b_k, w_v, b_v, w_o, b_o, gamma1, beta1, w_1, b_1, w_2, b_2, gamma2, beta2 = parameters
        qkv = functional.linear(x, torch.cat((w_q, w_k, w_v)), torch.cat((b_q, b_k, b_v)))  # (M, 3H)
        mixed, logsums = kernels.attention_forward(qkv, segments, shape, keys[0], attention_rate)
        chosen, residual = (mixed, x) if selected is None else (mixed[selected], x[selected])
        z1 = functional.linear(chosen, w_o)
        x1, statistics1 = kernels.norm_forward(z1, b_o, residual, gamma1, beta1, epsilon, keys[1], before=hidden_rate)
        u = functional.linear(x1, w_1)  # (M or S, I)
        z2 = functional.linear(kernels.gelu_forward(u, b_1, keep=gradients), w_2)
        out, statistics2 = kernels.norm_forward(z2, b_2, x1, gamma2, beta2, epsilon, keys[2], before=hidden_rate)
        ctx.save_for_backward(x, segments, selected, qkv, mixed, logsums, z1, statistics1, x1, u, z2, statistics2, *parameters)
        ctx.settings = settings
        return out

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, segments, selected, qkv, mixed, logsums, z1, statistics1, x1, u, z2, statistics2, *parameters = ctx.saved_tensors
        shape, _, keys, hidden_rate, attention_rate, _ = ctx.settings
        w_q, _, w_k, _, w_v, _, w_o, b_o, gamma1, _, w_1, b_1, w_2, b_2, gamma2, _ = parameters
        trains = any(ctx.needs_input_grad[4:])
        d_z2, d_y2, sums2 = kernels.norm_backward(
            d_out.contiguous(), None, z2, b_2, gamma2, statistics2, trains, keys[2], before=hidden_rate
        )
        d_u = d_y2 @ w_2
        activated, d_b1 = kernels.gelu_backward(d_u, u, b_1, again=trains, parameters=trains)
        d_z1, d_y1, sums1 = kernels.norm_backward(d_u @ w_1, d_z2, z1, b_o, gamma1, statistics1, trains, keys[1], before=hidden_rate)
        d_mixed, chosen = d_y1 @ w_o, mixed
        if selected is not None:  # the other rows' output went nowhere
            chosen = mixed[selected]
            d_mixed, d_z1 = (torch.zeros_like(x).index_copy_(0, selected, rows) for rows in (d_mixed, d_z1))
        d_qkv = kernels.attention_backward(d_mixed, qkv, segments, shape, keys[0], attention_rate, mixed, logsums)
        d_x = torch.addmm(d_z1, d_qkv, torch.cat((w_q, w_k, w_v))) if ctx.needs_input_grad[0] else None
        if not trains:
            return (d_x,) + (None,) * (3 + len(parameters))
        assert sums1 is not None and sums2 is not None and activated is not None and d_b1 is not None
        d_gamma1, d_beta1, d_bo = sums1
        d_gamma2, d_beta2, d_b2 = sums2
        weights, biases = kernels.weight_gradient(d_qkv, x).chunk(3), kernels.column_sums(d_qkv).chunk(3)
        gradients = [gradient for pair in zip(weights, biases, strict=True) for gradient in pair]
        gradients += [kernels.weight_gradient(d_y1, chosen), d_bo, d_gamma1, d_beta1]
        gradients += [kernels.weight_gradient(d_u, x1), d_b1, kernels.weight_gradient(d_y2, activated), d_b2, d_gamma2, d_beta2]
        return d_x, None, None, None, *(gradient.to(x.dtype) for gradient in gradients)


def check_tokens(tokens: torch.Tensor, vocabulary: int) -> None:
    """Raises RunError for a token that is none of so many pieces. tokens: of any shape, on the host."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise RunError(
            f"a token is {int(tokens.max())}, the vocabulary has {vocabulary}: the corpus is damaged; see which file by "
            "python -m data_tools.inspect CORPUS --verify"
        )


class _Head(torch.autograd.Function):
    """The MLM head and the summed cross-entropy. x: (S, H). The gradient of the logits is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, labels: torch.Tensor, settings: tuple[float, bool], of_output: list[torch.Tensor] | None,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        epsilon, gradients = settings
        w_d, b_d, gamma, beta, output, bias = parameters
        check_tokens(labels, len(output))  # the kernel writes at these places
        u = functional.linear(x, w_d)
        z = kernels.gelu_forward(u, b_d)
        features, statistics = kernels.norm_forward(z, None, None, gamma, beta, epsilon, 0)
        logits = functional.linear(features, output)  # (S, V)
        losses, sums = kernels.cross_entropy(logits, bias, labels, gradients, gradients and ctx.needs_input_grad[9])
        ctx.save_for_backward(x, u, z, statistics, features, logits, sums, *parameters)
        ctx.of_output = of_output
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, d_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, u, z, statistics, features, d_logits, d_bias, w_d, b_d, gamma, _, output, _ = ctx.saved_tensors
        d_features = (d_logits @ output).mul_(d_loss)
        d_z, _, sums = kernels.norm_backward(d_features, None, z, None, gamma, statistics, True, 0)
        _, d_bd = kernels.gelu_backward(d_z, u, b_d, again=False, parameters=True)
        assert sums is not None and d_bd is not None
        d_gamma, d_beta, _ = sums
        d_output = kernels.weight_gradient(d_logits, features * d_loss) if ctx.needs_input_grad[8] else None
        if ctx.of_output is not None and d_output is not None:
            d_output = d_output.to(w_d.dtype)
            ctx.of_output.append(d_output)
        d_bias = None if d_bias is None else d_bias.mul_(d_loss)
        gradients = (kernels.weight_gradient(d_z, x), d_bd, d_gamma, d_beta, d_output, d_bias)
        return d_z @ w_d, None, None, None, *(None if gradient is None else gradient.to(w_d.dtype) for gradient in gradients)
