"""The quickstart's last page: three scores, and the files to look at."""

import json
import sys
from pathlib import Path

import numpy as np

from trainer.relations import LABELS, read_relations
from trainer.scores import micro_f1


def main(run: Path) -> None:
    rows = np.array([row.label for row in read_relations(run / "world" / "klue_re_eval.json")])
    constant = max(range(1, len(LABELS)), key=lambda label: micro_f1(rows, np.full(len(rows), label)))
    scores = json.loads((run / "klue_re" / "table.json").read_text())["models"]
    validation = [row for row in map(json.loads, (run / "xpt" / "metrics.jsonl").read_text().splitlines()) if "valid_perplexity" in row]
    before, after = (validation[place]["valid_perplexity"] for place in (0, -1))
    print(f"validation perplexity: {before:,.0f} before post-training, {after:,.1f} after")
    print(f"micro-F1 on {len(rows)} evaluation rows about people, places and companies that fine-tuning never saw:")
    print(f"  {scores['post-trained']['mean']['micro_f1']:6.2f}  post-trained model")
    print(f"  {scores['before']['mean']['micro_f1']:6.2f}  the same model before post-training")
    print(f"  {micro_f1(rows, np.full(len(rows), constant)):6.2f}  always {LABELS[constant]}, the best constant answer")
    print("look at:")
    for path, what in [
        ("world/wiki.xml", "the invented dump"),
        ("corpus/manifest.json", f"the corpus; python -m data_tools.inspect {run}/corpus"),
        ("xpt/metrics.jsonl", f"the training; tensorboard --logdir {run}"),
        ("xpt/model", "the Korean model, a plain Hugging Face folder with a model card"),
        ("report.json", "the evaluation, label by label"),
        ("predictions.jsonl", "every row's probabilities"),
    ]:
        print(f"  {run / path!s:<38} {what}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
