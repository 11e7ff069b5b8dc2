#!/usr/bin/env bash
# Real text, a real seed: XPT with dictionary and with random embeddings beside the same architecture from random weights.
#   CORPUS=corpora/kowiki LEXICON=en_ko.tsv bash benchmarks/real_run.sh search    # learning rates, 1M tokens each
#   CORPUS=... LEXICON=... RATES="dictionary=2e-3 random=1e-3 scratch=1e-3" bash benchmarks/real_run.sh full   # 5.2M tokens each
# Runs of one rank and one thread, two (search) or all (full) at a time. The rate is stage 1's; stage 2 has half of it. What is finished is skipped, what was
# interrupted goes on.
set -euo pipefail
RUNS=${RUNS:-runs/real}

post_train() {  # name, arm, rate, stage 1 steps, stage 2 steps
    local name=$1 arm=$2 rate=$3 first=$4 second=$5
    [ -d "$RUNS/$name/model" ] && return
    local half; half=$(python -c "print($rate / 2)")
    local stages=("stages.0.steps=$first" "stages.1.steps=$second" "stages.0.warmup_steps=$((first / 10))"
        "stages.1.warmup_steps=$((second / 10))" "stages.0.learning_rate=$rate" "stages.1.learning_rate=$half")
    local settings=("surgery.lexicon=$LEXICON" "every.evaluate=${EVALUATE:-64}" "every.checkpoint=256")
    case $arm in
        random) settings+=("surgery.embedding_init=random") ;;
        scratch) # nothing to freeze: everything trains from the start, at one rate
            local all="[{name: all, train: [all], steps: $((first + second)), learning_rate: $rate, warmup_steps: $(((first + second) / 10))}]"
            stages=("stages=$all")
            settings+=("surgery.seed_weights=random" "surgery.embedding_init=random") ;;
    esac
    mkdir -p "$RUNS"
    OMP_NUM_THREADS=1 python trainer/xpt.py --recipe recipes/minilm.yaml --ds-config ds_configs/zero2_cpu.json --corpus "$CORPUS" \
        --output-dir "$RUNS/$name" --set "${stages[@]}" "${settings[@]}" > "$RUNS/$name.log" 2>&1
}

two_at_a_time() { while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done; }

case $1 in
    search)
        for rate in 1e-3 2e-3 5e-4; do
            for arm in dictionary random scratch; do two_at_a_time; post_train "search-$arm-$rate" $arm $rate 96 160 & done
        done ;;
    full) for pair in $RATES; do post_train "full-${pair%=*}" "${pair%=*}" "${pair#*=}" 480 800 & done ;;
esac
wait
