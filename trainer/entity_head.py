"""Classification from the two entities' first states, instead of from [CLS]: Baldini Soares et al. 2019, "Matching the Blanks".

The state at the subject's start marker beside that at the object's (without markers: at each entity's first token), then dense, tanh,
dropout, linear. An encoder-decoder gives its encoder's states. A decoder's state at a start marker has not seen the entity behind it.

transformers has no class with such a head, so that a folder saved here is a plain model of the *base* class: `AutoModel` loads it
anywhere, the head lies beside it in entity_head.safetensors, and config.json says so (`klue_re: {"head": "entities"}`). Elsewhere
`AutoModelForSequenceClassification` loads such a folder too, but tells that it made a new, untrained head: only `klue_re.py eval` and
`trainer.classifier.load_classifier` read the whole of it.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from trainer.relations import LABELS

HEAD_FILE = "entity_head.safetensors"
DROPOUT = 0.1


class EntityClassifier(torch.nn.Module):
    """A base model and the head on its entity-start states, called and saved like transformers' own classifiers."""

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        width = base.config.hidden_size
        self.base = base
        self.head = torch.nn.ModuleDict({"dense": torch.nn.Linear(2 * width, width), "out": torch.nn.Linear(width, len(LABELS))})
        for layer in self.head.values():  # as transformers draws the heads it adds
            torch.nn.init.normal_(layer.weight, std=getattr(base.config, "initializer_range", 0.02))  # type: ignore[arg-type]
            torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @property
    def config(self) -> PretrainedConfig:
        return self.base.config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, starts: torch.Tensor) -> SequenceClassifierOutput:
        """starts: (rows, 2), the places of the subject's and of the object's first token."""
        encoder = self.base.get_encoder() if self.base.config.is_encoder_decoder else self.base
        states = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(states), device=states.device)[:, None]
        pair = torch.tanh(self.head["dense"](states[rows, starts].flatten(1)))
        return SequenceClassifierOutput(logits=self.head["out"](torch.nn.functional.dropout(pair, DROPOUT, self.training)))

    def save_pretrained(self, folder: Path) -> None:
        self.base.save_pretrained(folder)
        save_file(self.head.state_dict(), folder / HEAD_FILE)

    def load_head(self, path: str) -> None:
        """Raises some error of torch's or safetensors' where the file is not that of a head of this size."""
        self.head.load_state_dict(load_file(path))
