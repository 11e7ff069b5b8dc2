"""What a post-trained model puts into blanks: python trainer/fill_mask.py --model RUN/model "서울은 한국의 <mask>이다." ..."""

import argparse

from data_tools.errors import UserError, run_command
from trainer.relations import has_lone_surrogate


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill the blanks of sentences.")
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="an exported model")
    parser.add_argument("--top", type=int, default=5, help="answers shown for each blank")
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE", help="text with <mask> in it")
    arguments = parser.parse_args()
    if arguments.top < 1:
        raise UserError(f"--top: expected at least 1, found {arguments.top}; give 1 or more")

    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    from trainer.classifier import length_limit

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its loading report; what it would say is checked below
    try:
        tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
        model, loading = AutoModelForMaskedLM.from_pretrained(
            arguments.model, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # the library raises whatever the parser of that kind of file raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"--model {arguments.model}: expected an exported model with its tokenizer, found: {reason}; give RUN/model"
        ) from None
    if tokenizer.mask_token is None:
        raise UserError(f"--model {arguments.model}: expected a tokenizer with a mask token, found none; give a model that `xpt.py` made")
    if missing := sorted(loading["missing_keys"]):  # they would be drawn at random, and answer
        raise UserError(f"--model {arguments.model}: expected a masked language model, found no weights for {missing[0]}; name an export")
    model.eval()
    limit = length_limit(model, tokenizer)
    for sentence in arguments.sentences:
        if has_lone_surrogate(sentence):  # what Python makes of bytes that are not UTF-8
            raise UserError(f"{sentence!r}: expected UTF-8, found other bytes; set the terminal to UTF-8")
        inputs = tokenizer(sentence, return_tensors="pt", return_token_type_ids=False)
        if inputs["input_ids"].shape[1] > limit:
            raise UserError(f"{sentence[:40]!r}...: expected at most {limit} tokens; give a shorter sentence")
        blanks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
        if not blanks:
            raise UserError(f"{sentence!r}: expected {tokenizer.mask_token} somewhere in it, found none; put it where a word is to stand")
        with torch.no_grad():
            probabilities = model(**inputs).logits[0, blanks].float().softmax(-1)  # (blanks, V)
        print(sentence)
        for values, ids in zip(*probabilities.topk(min(arguments.top, probabilities.shape[1])), strict=True):
            answers = zip(tokenizer.convert_ids_to_tokens(ids.tolist()), values.tolist(), strict=True)
            print("    " + "   ".join(f"{piece.replace('▁', ' ').strip() or '▁'} {share:.0%}" for piece, share in answers))


if __name__ == "__main__":
    run_command(main)
