"""A relation classifier: an encoder with a 30-way head, its tokenizer with the entity markers, and how it reads a row.

The head is `AutoModelForSequenceClassification`'s own, on the state of the first token: dense, tanh, linear for BERT (where
the dense is its pooler, if the model has one) and RoBERTa. So a folder saved here loads anywhere, and any encoder that transformers can
classify with fits. `config.json` carries, beside the 30 labels, a `klue_re` entry with input format and maximum length, so that
evaluation reads rows the same way.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data_tools.errors import UserError
from trainer.markers import INPUT_FORMATS, add_markers, marker_tokens
from trainer.relations import LABELS

DEFAULT_MAX_LENGTH = 256
PAD_MULTIPLE = 8  # few different widths, and matrix units like them


@dataclass
class Classifier:
    """A model with 30 classes and all that is needed to feed it. `class_of[n]` is the model's class number of LABELS[n]."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    input_format: str
    max_length: int
    class_of: tuple[int, ...] = tuple(range(len(LABELS)))


def quiet_transformers() -> None:
    """Keep the library's warnings and loading bars off the screen: what matters of them is told in one line of our own."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is in the hardware; elsewhere it is emulated, and slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def new_classifier(source: str, input_format: str, max_length: int, seed: int) -> tuple[Classifier, list[str]]:
    """A classifier to fine-tune, from a model folder or Hub id; weights that the source lacks are drawn from `seed`.

    Returns it with the names of the newly initialised parameters. max_length is cut to what the position embeddings hold.
    Raises UserError where the source is no model with a tokenizer.
    """
    tokenizer = _load_tokenizer(source)
    torch.manual_seed(seed)
    id2label = dict(enumerate(LABELS))
    model, loading = _load_model(source, num_labels=len(LABELS), id2label=id2label, label2id={label: n for n, label in id2label.items()})
    add_markers(tokenizer, input_format)
    if len(tokenizer) > len(model.get_input_embeddings().weight):  # type: ignore[arg-type]  # never fewer: some tables are padded
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    fresh = sorted({*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])})
    return Classifier(model, tokenizer, input_format, min(max_length, length_limit(model, tokenizer))), fresh


def load_classifier(source: str) -> Classifier:
    """A fine-tuned classifier. Its head may have the 30 labels in another order than the official one.

    Raises UserError where the source is no model with a tokenizer, its labels are not KLUE-RE's, or its tokenizer lacks the markers.
    """
    config = _load_config(source)
    class_of = _classes_of_labels(config.id2label or {}, source)
    tokenizer = _load_tokenizer(source)
    reading = getattr(config, "klue_re", None) or {"input_format": "untyped", "max_length": DEFAULT_MAX_LENGTH}
    input_format, max_length = reading.get("input_format"), reading.get("max_length")
    if input_format not in INPUT_FORMATS or not isinstance(max_length, int):
        raise UserError(f"--model {source}: config.json, klue_re: expected input_format and max_length, found {reading}; fine-tune it anew")
    lacking = [token for token in marker_tokens(input_format) if token not in tokenizer.get_vocab()]
    if lacking:
        raise UserError(
            f"--model {source}: expected a tokenizer with the markers of the format {input_format!r}, found none of {' '.join(lacking)}; "
            "give a model that `klue_re.py train` made"
        )
    model, loading = _load_model(source)
    if loading["missing_keys"] or loading["mismatched_keys"]:
        raise UserError(
            f"--model {source}: expected a fine-tuned classifier, but weights are missing: {_few(loading['missing_keys'])}; "
            "fine-tune it first (`klue_re.py train`)"
        )
    return Classifier(model, tokenizer, input_format, min(max_length, length_limit(model, tokenizer)), class_of)


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write model and tokenizer into `folder`, beside what is there: aside first, then moved, config.json last.

    A folder without config.json is no model to any loader, so that an interrupted save cannot be taken for one.
    """
    classifier.model.config.klue_re = {"input_format": classifier.input_format, "max_length": classifier.max_length}
    aside = folder / "model.partial"
    shutil.rmtree(aside, ignore_errors=True)
    classifier.model.save_pretrained(aside)
    classifier.tokenizer.save_pretrained(aside)
    mode = (aside / "config.json").stat().st_mode  # safetensors writes files that only their owner can read
    for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
        path.chmod(mode)
        path.replace(folder / path.name)
    aside.rmdir()


def predict_probabilities(
    classifier: Classifier, input_ids: Sequence[Sequence[int]], batch_size: int = 64, progress: bool = False
) -> np.ndarray:
    """Class probabilities (rows, 30) in float64, in the order of the rows. Rows of like length go through the model together."""
    model = classifier.model
    device = next(model.parameters()).device
    probabilities = np.zeros((len(input_ids), len(LABELS)))
    order = np.argsort([-len(ids) for ids in input_ids], kind="stable")
    training = model.training
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
        begins = tqdm(range(0, len(order), batch_size), unit="batch", disable=not (progress and sys.stderr.isatty()))
        for begin in begins:
            rows = order[begin : begin + batch_size]
            inputs = padded_batch(classifier, [input_ids[row] for row in rows])
            probabilities[rows] = model(**inputs).logits.double().softmax(-1)[:, list(classifier.class_of)].cpu().numpy()
    model.train(training)
    return probabilities


def padded_batch(classifier: Classifier, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, both (rows, width), padded on the right to the longest row, rounded up to PAD_MULTIPLE."""
    device = next(classifier.model.parameters()).device
    longest = max(len(ids) for ids in rows)
    width = min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, max(classifier.max_length, longest))  # the position table may end between
    input_ids = np.full((len(rows), width), classifier.tokenizer.pad_token_id)
    for place, ids in enumerate(rows):
        input_ids[place, : len(ids)] = ids
    lengths = np.array([len(ids) for ids in rows])
    mask = np.arange(width) < lengths[:, None]
    return {"input_ids": torch.from_numpy(input_ids).to(device), "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(device)}


def length_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that fit: rows of the position table (less RoBERTa's first ones, up to its padding row), and what the tokenizer says."""
    limit = tokenizer.model_max_length
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = min(limit, module.num_embeddings - unused)
    return limit


def _load_config(source: str) -> transformers.PretrainedConfig:
    _check_source(source)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--model {source}: expected a model folder or Hub id, found none that loads ({_first_line(error)})") from None


def _load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    _check_source(source)
    folder = Path(source)
    # transformers makes up an empty tokenizer for a folder that has only a config.json, so that we look ourselves.
    if folder.is_dir() and not any([*folder.glob(name)] for name in ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.spm")):
        raise UserError(
            f"--model {source}: expected a tokenizer beside the model (tokenizer.json, or a vocabulary file), found none; "
            "save the tokenizer into that folder"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the library raises whatever the parser of that kind of file raises
        raise UserError(f"--model {source}: expected a tokenizer that transformers can load, but: {_first_line(error)}") from None
    if not tokenizer.is_fast:
        raise UserError(f"--model {source}: expected a fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}; convert it first")
    if tokenizer.pad_token_id is None:
        raise UserError(f"--model {source}: expected a tokenizer with a padding token, found none; set pad_token in its configuration")
    return tokenizer


def _load_model(source: str, **settings: object) -> tuple[PreTrainedModel, dict]:
    _load_config(source)
    # Measured on CPU: eager attention trains about twice as fast as torch's fused one at these lengths (its backward is slow there).
    attention = {} if torch.cuda.is_available() else {"attn_implementation": "eager"}
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **attention,
            **settings,
        )
    except Exception as error:
        raise UserError(
            f"--model {source}: expected a model that AutoModelForSequenceClassification loads from safetensors, but: {_first_line(error)}"
        ) from None


def _check_source(source: str) -> None:
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"--model {source}: expected a model folder with config.json, found none; give a Hugging Face model folder")
    elif folder.exists():
        raise UserError(f"--model {source}: expected a model folder or Hub id, found a file; give the folder it is in")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith(".") or ("/" in source and folder.parent.is_dir()):
        raise UserError(f"--model {source}: no such folder; give a Hugging Face model folder, or a Hub id such as klue/bert-base")


def _classes_of_labels(id2label: dict, source: str) -> tuple[int, ...]:
    """The model's class number of each of LABELS."""
    numbers = {str(name): int(number) for number, name in id2label.items()}
    if set(numbers) != set(LABELS) or len(id2label) != len(LABELS):
        unknown = [name for name in numbers if name not in LABELS]
        found = f"{len(id2label)} labels" + (f", among them {_few(unknown)}" if unknown else "")
        raise UserError(
            f"--model {source}: expected a head with KLUE-RE's {len(LABELS)} labels (id2label in config.json), found {found}; "
            "fine-tune the model first (`klue_re.py train`)"
        )
    return tuple(numbers[name] for name in LABELS)


def _few(names: Sequence[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
