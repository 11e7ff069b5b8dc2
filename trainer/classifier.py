"""A relation classifier: a model with a 30-way head, its tokenizer with the entity markers, and how it reads a row.

The head "cls" is `AutoModelForSequenceClassification`'s own, where that architecture has it: an encoder's on the state of the first
token ([CLS], where the tokenizer writes one), with dense, tanh, linear for BERT (where the dense is its pooler, if the model has one) and
RoBERTa; a decoder's on the last token that is not padding, an encoder-decoder's on the end token. So a folder saved here loads anywhere.
The head "entities" is `trainer.entity_head`'s.

`config.json` carries, beside the 30 labels, a `klue_re` entry with head, input format and maximum length, so that evaluation reads rows
the same way, and how the epoch was chosen.
"""

import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from data_tools.aside import flush
from data_tools.errors import UserError, first_line
from trainer import accelerator
from trainer.accelerator import has_bf16
from trainer.catalogue import read_models
from trainer.entity_head import HEAD_FILE, EntityClassifier
from trainer.forward import write_out_encoder
from trainer.markers import EncodedRelations, add_markers, encode_relations, marker_tokens
from trainer.pretrained import write_model
from trainer.relations import LABELS, Entity, Relation
from trainer.settings import DEFAULT_MAX_LENGTH, HEADS, INPUT_FORMATS

PAD_MULTIPLE = 8  # few different widths, and matrix units like them


@dataclass
class Classifier:
    """A model with 30 classes and all that is needed to feed it.

    class_of[n]: the model's class number of LABELS[n]. training: how it came about, as reports tell it: selection, epoch.
    padding_counts: padding changes what the model says (FNet has no mask), so that every row is padded to max_length: its score must
    not depend on the rows beside it.
    """

    model: PreTrainedModel | EntityClassifier
    tokenizer: PreTrainedTokenizerBase
    input_format: str
    max_length: int
    class_of: tuple[int, ...] = tuple(range(len(LABELS)))
    training: dict[str, Any] = field(default_factory=dict)
    padding_counts: bool = False

    @property
    def head(self) -> str:
        return "entities" if isinstance(self.model, EntityClassifier) else "cls"


def quiet_transformers() -> None:
    """Keep the library's warnings and loading bars off the screen: what matters of them is told in one line of our own."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def pick_device() -> torch.device:
    return torch.device("cuda" if accelerator.is_gpu() else "cpu")


def new_classifier(source: str, input_format: str, max_length: int, seed: int, head: str = "cls") -> tuple[Classifier, list[str]]:
    """A classifier to fine-tune, from a model folder or Hub id; weights that the source lacks are drawn from `seed`.

    Returns it with the names of the newly initialised parameters. max_length is cut to what the position embeddings hold.
    Raises UserError where the source is no model with a tokenizer.
    """
    config = load_config(source)  # first: a tokenizer's errors about it say less
    tokenizer = load_tokenizer(source)
    torch.manual_seed(seed)
    label2id = {label: n for n, label in enumerate(LABELS)}
    theirs = {str(label): int(n) for n, label in (config.id2label or {}).items()}
    if head == "cls" and theirs.keys() == label2id.keys():  # it has been fine-tuned on KLUE-RE before: its rows are those labels
        label2id = theirs
    labels = {"num_labels": len(LABELS), "id2label": {n: label for label, n in label2id.items()}, "label2id": label2id}
    model, loading = _load_model(source, head, **labels)
    _settle_special_ids(model.config, tokenizer, source)
    add_markers(tokenizer, input_format)
    if len(tokenizer) > len(model.get_input_embeddings().weight):  # type: ignore[arg-type]  # never fewer: some tables are padded
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    fresh = {*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])}
    _refuse_random_encoder(model, fresh, source)
    class_of = tuple(label2id[label] for label in LABELS)
    classifier = Classifier(model, tokenizer, input_format, min(max_length, length_limit(model, tokenizer)), class_of)
    if head == "entities":
        classifier.model = EntityClassifier(model)
        fresh |= {f"head.{name}" for name in classifier.model.head.state_dict()}
    classifier.padding_counts = _padding_counts(classifier)
    return classifier, sorted(fresh)


def _refuse_random_encoder(model: PreTrainedModel, fresh: Iterable[str], source: str) -> None:
    """Raises UserError when more than the head, and a pooler below it, would be drawn at random: names or shapes that do not match."""
    encoder = "" if model.base_model is model else f"{model.base_model_prefix}."
    lost = [name for name in fresh if name.startswith(encoder) and "pooler" not in name.split(".")]
    if lost:
        raise UserError(
            f"--model {source}: expected the encoder's weights, found none of that name and shape for {_few(lost)}, which would be drawn "
            "at random; save it anew with save_pretrained, or give another"
        )


def load_classifier(source: str) -> Classifier:
    """A fine-tuned classifier. Its head may have the 30 labels in another order than the official one.

    Raises UserError where the source is no model with a tokenizer, its labels are not KLUE-RE's, or its tokenizer lacks the markers.
    """
    config = load_config(source)
    class_of = _classes_of_labels(config.id2label or {}, source)
    tokenizer = load_tokenizer(source)
    reading = getattr(config, "klue_re", None) or {"input_format": "untyped", "max_length": DEFAULT_MAX_LENGTH}
    known = reading if isinstance(reading, dict) else {}
    input_format, max_length, head = known.get("input_format"), known.get("max_length"), known.get("head", "cls")
    if input_format not in INPUT_FORMATS or not isinstance(max_length, int) or head not in HEADS:
        raise UserError(
            f"--model {source}: config.json, klue_re: expected input_format, max_length and head, found {reading}; fine-tune it anew"
        )
    lacking = [token for token in marker_tokens(input_format) if token not in tokenizer.get_vocab()]
    if lacking:
        raise UserError(
            f"--model {source}: expected a tokenizer with the markers of the format {input_format!r}, found none of {' '.join(lacking)}; "
            "give a model that `klue_re.py train` made"
        )
    model, loading = _load_model(source, head)
    _settle_special_ids(model.config, tokenizer, source)
    missing = {*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])}
    if missing:
        raise UserError(
            f"--model {source}: expected a fine-tuned classifier, found none of the weights {_few(missing)}; "
            "fine-tune it first (`klue_re.py train`)"
        )
    training = {key: value for key, value in known.items() if key not in ("input_format", "max_length", "head")}
    classifier = Classifier(model, tokenizer, input_format, min(max_length, length_limit(model, tokenizer)), class_of, training)
    if head == "entities":
        classifier.model = EntityClassifier(model)
        try:
            classifier.model.load_head(str(cached_file(source, HEAD_FILE)))  # in a folder, or from the Hub
        except Exception as error:
            raise UserError(
                f"--model {source}: expected {HEAD_FILE} beside the model, with a head of its width, found: {first_line(error)}; "
                "copy it there, or fine-tune anew (`klue_re.py train`)"
            ) from None
    classifier.padding_counts = _padding_counts(classifier)
    return classifier


@torch.no_grad()
def _padding_counts(classifier: Classifier) -> bool:
    """Whether the model says something else of a row when padding is added."""
    row = Relation("padding", "가 나", Entity("가", 0, 0, "PER"), Entity("나", 2, 2, "LOC"), 0)
    data = encode_rows(classifier, [row], "padding")
    inputs = padded_batch(classifier, data, [0])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    more = min(PAD_MULTIPLE, classifier.max_length - ids.shape[1])
    padding = classifier.model.config.pad_token_id
    wider = {"input_ids": functional.pad(ids, (0, more), value=padding), "attention_mask": functional.pad(mask, (0, more))}
    model, training = classifier.model, classifier.model.training
    model.eval()
    close = torch.allclose(model(**inputs).logits, model(**(inputs | wider)).logits, rtol=1e-3, atol=1e-4)
    model.train(training)
    return more > 0 and not close


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write model and tokenizer into `folder`, beside what is there: aside first, then moved, config.json last.

    A folder without config.json is no model to any loader, so that an interrupted save cannot be taken for one.
    """
    reading = {"head": classifier.head, "input_format": classifier.input_format, "max_length": classifier.max_length}
    classifier.model.config.klue_re = reading | classifier.training
    aside = folder / "model.partial"
    shutil.rmtree(aside, ignore_errors=True)
    write_model(classifier.model, aside)
    classifier.tokenizer.save_pretrained(aside)
    flush(*aside.iterdir())
    for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
        if path.name == "config.json":
            flush(folder)  # the other names are on the disk before it says that all is there
        path.replace(folder / path.name)
    flush(folder)
    aside.rmdir()


def encode_rows(classifier: Classifier, rows: Sequence[Relation], source: str) -> EncodedRelations:
    """Rows as this model reads them; `source` names them in errors."""
    config = classifier.model.config
    end_id = config.eos_token_id if config.is_encoder_decoder else None
    return encode_relations(rows, classifier.tokenizer, classifier.input_format, classifier.max_length, source, end_id)


def predict_probabilities(classifier: Classifier, data: EncodedRelations, batch_size: int = 64, progress: bool = False) -> np.ndarray:
    """Class probabilities (rows, 30) in float64, in the order of the rows. Rows of like length go through the model together."""
    model = classifier.model
    device = next(model.parameters()).device
    probabilities = np.zeros((len(data.input_ids), len(LABELS)))
    order = np.argsort([-len(ids) for ids in data.input_ids], kind="stable")
    training = model.training
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
        begins = tqdm(range(0, len(order), batch_size), unit="batch", disable=not (progress and sys.stderr.isatty()))
        for begin in begins:
            rows = order[begin : begin + batch_size]
            inputs = padded_batch(classifier, data, rows)
            probabilities[rows] = model(**inputs).logits.double().softmax(-1)[:, list(classifier.class_of)].cpu().numpy()
    model.train(training)
    if not np.isfinite(probabilities).all():
        raise UserError(
            f"{int((~np.isfinite(probabilities)).any(axis=1).sum())} of {len(probabilities)} rows have no finite probabilities: weights "
            "are damaged, or --learning-rate was too high for it; give a lower rate, and another --output-dir"
        )
    return probabilities


def padded_batch(classifier: Classifier, data: EncodedRelations, rows: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
    """The numbered rows as the model's arguments: input_ids and attention_mask, both (rows, width); starts for the head "entities".

    Padded on the right, whatever the tokenizer's own side: a decoder counts positions from the left, and its head looks for the last
    token that is not the configuration's padding. The width is the longest row's, rounded up to PAD_MULTIPLE.
    """
    device = next(classifier.model.parameters()).device
    batch = [data.input_ids[row] for row in rows]
    longest = max(len(ids) for ids in batch)
    if classifier.padding_counts:
        longest = max(longest, classifier.max_length)
    width = min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, max(classifier.max_length, longest))  # the position table may end between
    input_ids = np.full((len(batch), width), classifier.model.config.pad_token_id)
    for place, ids in enumerate(batch):
        input_ids[place, : len(ids)] = ids
    lengths = np.array([len(ids) for ids in batch])
    inputs = {"input_ids": input_ids, "attention_mask": (np.arange(width) < lengths[:, None]).astype(np.int64)}
    if classifier.head == "entities":
        inputs["starts"] = np.array([data.starts[row] for row in rows])
    return {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}


def length_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that fit: positions the model has (less RoBERTa's first ones, up to its padding row), and what the tokenizer says."""
    limit = tokenizer.model_max_length
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:  # relative positions: none, or -1
        limit = min(limit, positions)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = min(limit, module.num_embeddings - unused)
    return limit


def load_config(source: str) -> transformers.PretrainedConfig:
    """The configuration of a model folder or Hub id. Raises UserError when there is none that loads."""
    check_source(source)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"--model {source}: expected a model folder or Hub id, found none that loads ({first_line(error)}); repair it or give another"
        ) from None


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model folder or Hub id. Raises UserError when there is none."""
    check_source(source)
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
        raise UserError(
            f"--model {source}: expected a tokenizer that transformers can load, found: {first_line(error)}; save it anew, or give another"
        ) from None
    if not tokenizer.is_fast:
        raise UserError(f"--model {source}: expected a fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}; convert it first")
    return tokenizer


def _settle_special_ids(config: transformers.PretrainedConfig, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Give a tokenizer without a padding token (GPT-2's) one, and a configuration without its id that id; both are saved.

    Any token will do where a mask hides it, but a decoder's head finds the last token by it, and an encoder-decoder's the end token:
    neither may take padding for text. Raises UserError where there is no such token.
    """
    if config.is_encoder_decoder and config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    if tokenizer.pad_token is None:
        known = config.pad_token_id is not None and 0 <= config.pad_token_id < len(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id) if known else tokenizer.eos_token
    if config.pad_token_id is None or config.pad_token_id < 0:
        config.pad_token_id = tokenizer.pad_token_id
    if config.pad_token_id is None:
        raise UserError(
            f"--model {source}: expected a tokenizer with a padding or an end token, found neither; set pad_token in its configuration"
        )
    if config.is_encoder_decoder and config.eos_token_id in (None, config.pad_token_id):
        raise UserError(
            f"--model {source}: expected an encoder-decoder with an end token that is not its padding, found eos_token_id "
            f"{config.eos_token_id} and pad_token_id {config.pad_token_id}; set both in its config.json"
        )


def _load_model(source: str, head: str, **settings: object) -> tuple[PreTrainedModel, dict]:
    """The model that carries the head, and transformers' account of the loading."""
    config = load_config(source)
    # BigBird's sparse attention would come and go with the longest row of a batch, and draws at random where it looks: a row's scores
    # would depend on its neighbours. Rows of KLUE's length are below its threshold anyway.
    if getattr(config, "attention_type", None) == "block_sparse":
        settings["attention_type"] = "original_full"
    auto_class = AutoModelForSequenceClassification if head == "cls" else AutoModel
    # Measured on CPU: eager attention trains about twice as fast as torch's fused one at these lengths (its backward is slow there).
    attention = {} if accelerator.is_gpu() else {"attn_implementation": "eager"}
    try:
        model, loading = auto_class.from_pretrained(
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
            f"--model {source}: expected a model that {auto_class.__name__} loads from safetensors, found: {first_line(error)}; "
            "save it anew, or give another"
        ) from None
    write_out_encoder(model, first_only=head == "cls")  # these four kinds classify from [CLS]
    return model, loading


def check_source(source: str) -> None:
    """Raises UserError for a folder that is no model's."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"--model {source}: expected a model folder with config.json, found none; give a Hugging Face model folder")
        return
    if folder.exists():
        raise UserError(f"--model {source}: expected a model folder or Hub id, found a file; give the folder it is in")
    in_folder = "/" in source and folder.parent.is_dir() and source not in {model.hub_id for model in read_models()}
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith(".") or in_folder:
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


def _few(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
