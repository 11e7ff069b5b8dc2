"""Which parts of a model hold what it learned: its test loss when one of them is put back to what it was before the first step.

    python -m benchmarks.reversion BEFORE AFTER CORPUS      # two exports of one run, of checkpoints/step-0 and of the end; prints JSON

Measured: the loss on the test split in nats per masked token, by the part that was put back. BEFORE is made by `python -m trainer.export
--checkpoint RUN/checkpoints/step-0 --corpus CORPUS --output-dir BEFORE`. Where two parts work only together, putting back either costs all
that the two give. How far weights moved says less: AdamW moves all of them about as far.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from benchmarks.command import paths
from benchmarks.probes import loss_on_test
from trainer.architecture import architecture_of
from trainer.stages import split_parts


def reversions(before: Path, after: Path, corpus: Path) -> dict[str, float]:
    """{what was put back: loss}; `nothing` and `all` among them."""
    old, model = (AutoModelForMaskedLM.from_pretrained(folder).eval() for folder in (before, after))
    tokenizer = AutoTokenizer.from_pretrained(after)
    start, end = (dict(given.named_parameters()) for given in (old, model))
    learned = {name: value.detach().clone() for name, value in end.items()}
    architecture, layers = architecture_of(model.config), model.config.num_hidden_layers
    parts = split_parts({name: tuple(value.shape) for name, value in end.items()}, architecture, layers, "both")
    first = {name for name in parts.itl if architecture.layer_of(name) == 0}
    groups = {
        "nothing": (), "embeddings and output": parts.embeddings, "head": parts.head, "first adaptation layer": first,
        "last adaptation layer": set(parts.itl) - first, "encoder": [name for names in parts.layers for name in names],
        **{f"layer {number}": names for number, names in enumerate(parts.layers)}, "all": end,
    }  # fmt: skip
    found = {}
    with torch.no_grad():
        for label, names in groups.items():
            for name in names:
                end[name].copy_(start[name])
            found[label] = round(loss_on_test(model, tokenizer, corpus), 4)
            for name in names:
                end[name].copy_(learned[name])
    return found


if __name__ == "__main__":
    print(json.dumps(reversions(*paths(__doc__, "BEFORE", "AFTER", "CORPUS")), indent=1))
