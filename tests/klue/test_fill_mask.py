"""trainer/fill_mask.py: what a model puts into blanks."""

import runpy
import sys

from transformers import AutoTokenizer, BertForMaskedLM

from tests.klue.invented import REPOSITORY, copied
from trainer.classifier import new_classifier, save_classifier


def test_blanks_are_filled_and_mistakes_told(work, tmp_path, monkeypatch, capsys):
    seed = work / "seed"
    broken = copied(seed, tmp_path / "bad")
    (broken / "tokenizer.json").write_text("{")

    def fill(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["fill_mask.py", *map(str, arguments)])
        try:
            runpy.run_path(str(REPOSITORY / "trainer" / "fill_mask.py"), run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    assert fill("--model", seed, "--top", 1000, "[MASK] 태어났다") == 0
    assert capsys.readouterr().out.count("%") == len(AutoTokenizer.from_pretrained(seed))
    text, tokenizer, model = (
        "[MASK] 가람 [MASK] 태어났다",
        AutoTokenizer.from_pretrained(seed),
        BertForMaskedLM.from_pretrained(seed).eval(),
    )
    assert fill("--model", seed, "--top", 1, text) == 0
    given = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    best = model(**given).logits[0].argmax(-1)[given["input_ids"][0] == tokenizer.mask_token_id]
    said = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert said == tokenizer.convert_ids_to_tokens(best.tolist()) and len(said) == 2
    tuned = tmp_path / "tuned"
    save_classifier(new_classifier(str(seed), "untyped", 64, 0)[0], tuned)  # no masked language model any more
    for words, arguments in (
        ("expected a masked language model", ("--model", tuned, "[MASK] 태어났다")),
        ("--top: expected at least 1, found -1", ("--model", seed, "--top", -1, "[MASK]")),
        ("--model", ("--model", broken, "[MASK]")),
        ("expected [MASK]", ("--model", seed, "태어났다")),
        ("at most 20 tokens", ("--model", seed, "[MASK] " * 30)),
        ("expected UTF-8", ("--model", seed, "[MASK] \udcff")),
    ):
        assert fill(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and "Traceback" not in error, error
