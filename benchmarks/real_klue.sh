#!/usr/bin/env bash
# KLUE-RE after benchmarks/real_run.sh full: post-trained, the same net from random weights, and the English seed with new embeddings, untrained.
#   CORPUS=corpora/kowiki KLUE=../shared/data/klue_re bash benchmarks/real_klue.sh
# One fine-tuning recipe: KLUE's 3 epochs; the rate is chosen on a hold-out of train, the same for all. Two runs of one thread at a time; what is
# finished is skipped, what was interrupted goes on.
set -euo pipefail
RUNS=${RUNS:-runs/real}
OUT=$RUNS/klue
declare -A MODELS=([post-trained]=$RUNS/full-dictionary/model [random-weights]=$RUNS/full-scratch/model [untrained]=$RUNS/untrained)

fine_tune() {  # train file, evaluation file, model's name, rate, output folder
    OMP_NUM_THREADS=1 python trainer/klue_re.py train --model "${MODELS[$3]}" --train-file "$1" --eval-file "$2" --epochs 3 \
        --learning-rate "$4" --output-dir "$5" > "$5.log" 2>&1
}
two_at_a_time() { while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done; }

mkdir -p "$OUT"
[ -d "${MODELS[untrained]}" ] || python -m trainer.export --checkpoint "$RUNS/full-dictionary/checkpoints/step-0" --corpus "$CORPUS" \
    --output-dir "${MODELS[untrained]}"
python benchmarks/real_klue.py split "$KLUE/klue-re-v1.1_train.json" "$OUT"
for rate in 1e-4 2e-4 4e-4; do
    for name in "${!MODELS[@]}"; do two_at_a_time; fine_tune "$OUT/part.json" "$OUT/holdout.json" "$name" $rate "$OUT/search-$name-$rate" & done
done
wait
rate=$(python benchmarks/real_klue.py choose "$OUT")
for name in "${!MODELS[@]}"; do
    two_at_a_time
    fine_tune "$KLUE/klue-re-v1.1_train.json" "$KLUE/klue-re-v1.1_dev_part.json" "$name" "$rate" "$OUT/full-$name-$rate" &
done
wait
for name in "${!MODELS[@]}"; do
    python trainer/klue_re.py eval --model "$OUT/full-$name-$rate" --data "$KLUE/klue-re-v1.1_dev_part.json" \
        --predictions "$OUT/full-$name-$rate/predictions.jsonl" --html "$OUT/full-$name-$rate/page.html"
done
python benchmarks/real_klue.py tables "$OUT" "$KLUE"
