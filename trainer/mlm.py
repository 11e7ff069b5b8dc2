"""The masked-language-model loss, with logits at the selected positions only."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import is_flash_attn_2_available

from trainer.architecture import architecture_of
from trainer.blocks import MaskedBatch
from trainer.forward import Forward, check_tokens, supports


class MaskedLanguageModel(nn.Module):
    """A Hugging Face `...ForMaskedLM` (`self.model`) that returns the summed cross-entropy of the selected positions."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        architecture = architecture_of(model.config)
        self._base = getattr(model, architecture.base)
        self._head = model.get_submodule(architecture.head.split(".")[0])
        self._first_position = architecture.first_position(model.config)
        self._flash = model.config._attn_implementation == "flash_attention_2"
        self._forward = Forward(model) if supports(model) else None

    @property
    def written_out(self) -> bool:
        """Whether the passes are those of trainer/forward.py, not transformers'."""
        return self._forward is not None

    def forward(
        self, input_ids: torch.Tensor, selected: torch.Tensor, labels: torch.Tensor, segments: torch.Tensor | None = None
    ) -> torch.Tensor:
        """input_ids (B, L); selected (M,) flat positions into B*L; labels (M,); segments (B, L) or None as in `MaskedBatch`.

        Returns a float32 scalar, the sum of M.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        if segments is not None:
            begins = functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
            positions = positions - (positions * begins).cummax(dim=1).values  # from the beginning of each segment
        positions = positions + self._first_position
        if self._forward:
            return self._forward.loss(input_ids, positions, selected, labels, segments, self.model.training)
        if segments is not None and self._flash:
            hidden = self._of_separate(input_ids, positions, segments)
        else:
            attention = None  # blocks are full
            if segments is not None:
                apart = segments[:, None, :, None] != segments[:, None, None, :]  # (B, 1, L, L)
                dtype = next(self._base.parameters()).dtype
                attention = torch.zeros(apart.shape, dtype=dtype, device=apart.device).masked_fill_(apart, torch.finfo(dtype).min)
            hidden = self._base(input_ids=input_ids, position_ids=positions, attention_mask=attention).last_hidden_state.flatten(0, 1)
        logits = self._head(hidden[selected])  # (B*L, H) -> (M, V)
        return functional.cross_entropy(logits.float(), labels, reduction="sum")

    def _of_separate(self, input_ids: torch.Tensor, positions: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        """(B*L, H) of sentences that do not see each other, without a mask: all in one row, with the places where one begins, as flash
        attention for variable lengths wants them. Not run on a GPU; tests/test_blocks.py compares what it is given with the masked pass."""
        begins = functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True).flatten()
        places = functional.pad(begins.nonzero().flatten(), (0, 1), value=begins.numel()).int()
        longest = int(places.diff().max())
        row = {"input_ids": input_ids.reshape(1, -1), "position_ids": positions.reshape(1, -1)}
        lengths = {"cu_seq_lens_q": places, "cu_seq_lens_k": places, "max_length_q": longest, "max_length_k": longest}
        # not through a compiled call: another shape with every batch
        hidden: torch.Tensor = self._base.forward(**row, **lengths).last_hidden_state[0]
        return hidden

    def loss(self, batch: MaskedBatch, device: torch.device) -> torch.Tensor:
        """`forward` on a batch that may still lie on the host. Raises RunError for a token that the vocabulary does not have."""
        for tokens in (batch.input_ids, batch.labels):  # an IndexError, or on a GPU the end of the process, would name no corpus
            check_tokens(tokens, self.model.config.vocab_size)
        given: tuple[Any, ...] = (batch.input_ids, batch.selected, batch.labels, batch.segments)
        if device.type == "cuda":  # from pinned memory the copy waits for nobody; not run on a GPU
            given = tuple(None if tensor is None else tensor.pin_memory().to(device, non_blocking=True) for tensor in given)
        return self(*given)


def build_model(config: dict[str, Any], dropout: float, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """An uninitialised `...ForMaskedLM` on `device`; the caller fills every parameter.

    On CPU eager attention: its backward pass takes 0.45 s where the fused kernel's takes 0.87 s (MiniLM shape, 32 x 128
    tokens, bf16, 2 threads). On GPU the fused kernel, which gets no mask where blocks are full, or flash attention where it is installed.
    """
    settings = AutoConfig.for_model(**config)
    settings.hidden_dropout_prob = settings.attention_probs_dropout_prob = dropout
    attention = "eager"
    if device.type == "cuda":
        flash = is_flash_attn_2_available() and torch.cuda.get_device_capability(device)[0] >= 8 and dtype != torch.float32
        attention = "flash_attention_2" if flash else "sdpa"
    with no_init_weights(), torch.device(device):
        model = AutoModelForMaskedLM.from_config(settings, dtype=dtype, attn_implementation=attention)
    model.tie_weights()  # part of the initialisation that was left out
    tie_output_bias(model)
    return model


def tie_output_bias(model: PreTrainedModel) -> None:
    """When the output matrix is untied, `transformers` also unties the decoder's bias and leaves the head's unused; make them one again."""
    architecture = architecture_of(model.config)
    owner, _, name = architecture.bias.rpartition(".")
    model.get_submodule(architecture.decoder).bias = getattr(model.get_submodule(owner), name)
