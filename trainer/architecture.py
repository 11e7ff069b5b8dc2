"""Where RoBERTa and BERT keep the same things, by parameter name. The only file that knows the two apart."""

import re
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from data_tools.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """Names in the `...ForMaskedLM` class of one model type."""

    model_type: str
    base: str  # attribute and parameter prefix of the encoder with its embeddings
    head: str  # prefix of the MLM head
    head_dense: str
    head_norm: str
    decoder: str
    bias: str

    @property
    def layer(self) -> str:
        return f"{self.base}.encoder.layer."

    @property
    def embeddings(self) -> str:
        return f"{self.base}.embeddings."

    @property
    def word_embeddings(self) -> str:
        return f"{self.base}.embeddings.word_embeddings.weight"

    @property
    def position_embeddings(self) -> str:
        return f"{self.base}.embeddings.position_embeddings.weight"

    def layer_of(self, name: str) -> int | None:
        """Index of the encoder layer that a parameter belongs to, None for others."""
        match = re.match(re.escape(self.layer) + r"(\d+)\.", name)
        return int(match.group(1)) if match else None

    def first_position(self, config: PretrainedConfig) -> int:
        """Row of the position table that the first token uses: RoBERTa counts from pad_token_id + 1, BERT from 0."""
        return int(config.pad_token_id) + 1 if self.model_type == "roberta" else 0


_ARCHITECTURES = (
    Architecture("roberta", "roberta", "lm_head.", "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
    Architecture(
        "bert",
        "bert",
        "cls.predictions.",
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    ),
)


def architecture_of(config: PretrainedConfig | dict[str, Any], source: str = "model") -> Architecture:
    """The names for a configuration. Raises UserError for a model type that surgery does not know."""
    model_type = config["model_type"] if isinstance(config, dict) else config.model_type
    for architecture in _ARCHITECTURES:
        if architecture.model_type == model_type:
            return architecture
    known = ", ".join(a.model_type for a in _ARCHITECTURES)
    raise UserError(f"{source}: unsupported architecture {model_type!r}; XPT surgery knows {known}")
