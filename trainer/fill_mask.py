"""What a post-trained model puts into blanks: python trainer/fill_mask.py --model RUN/model "서울은 한국의 <mask>이다." ..."""

import argparse

from data_tools.errors import UserError, run_command


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill the blanks of sentences.")
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="an exported model")
    parser.add_argument("--top", type=int, default=5, help="answers shown for each blank")
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE", help="text with <mask> in it")
    arguments = parser.parse_args()

    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        model = AutoModelForMaskedLM.from_pretrained(arguments.model, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"--model {arguments.model}: expected an exported model with its tokenizer: {str(error).splitlines()[0]}") from None
    for sentence in arguments.sentences:
        inputs = tokenizer(sentence, return_tensors="pt", return_token_type_ids=False)
        blanks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
        if not blanks:
            raise UserError(f"{sentence!r}: expected {tokenizer.mask_token} somewhere in it, found none")
        with torch.no_grad():
            probabilities = model(**inputs).logits[0, blanks].float().softmax(-1)  # (blanks, V)
        print(sentence)
        for values, ids in zip(*probabilities.topk(arguments.top), strict=True):
            answers = zip(tokenizer.convert_ids_to_tokens(ids.tolist()), values.tolist(), strict=True)
            print("    " + "   ".join(f"{piece.replace('▁', ' ').strip() or '▁'} {share:.0%}" for piece, share in answers))


if __name__ == "__main__":
    run_command(main)
