#!/usr/bin/env bash
# The whole road on an invented Korean world: dump -> corpus -> two-stage post-training on 2 ranks -> KLUE-RE -> report.
# Run it with `make quickstart`, or line by line to see what each command does. A second run goes on where the first stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=runs/quickstart
export DS_ACCELERATOR=cpu
ds_config=ds_configs/zero2_cpu.json
grep -qE "avx512_bf16|amx_bf16" /proc/cpuinfo || ds_config=ds_configs/zero2_cpu_fp32.json # where the processor has no bf16
echo "== 1. An invented Korean world: a wiki dump, and examples in KLUE-RE's format"
[ -f $RUN/world/klue_re_eval.json ] || python -m data_tools.world --output-dir $RUN/world

echo "== 2. Corpus: dump -> sentences -> SentencePiece -> memory-mapped tokens"
python -m data_tools.prepare --input $RUN/world/wiki.xml --output-dir $RUN/corpus --vocab-size 8000

echo "== 3. Post-training an English model (MiniLM) in two stages on 2 ranks"
OMP_NUM_THREADS=1 deepspeed --hostfile hostfiles/localhost --no_ssh_check --master_addr 127.0.0.1 trainer/xpt.py \
    --recipe recipes/quickstart.yaml --ds-config $ds_config
echo "-- a few blanks, filled"
python trainer/fill_mask.py --model $RUN/xpt/model --top 4 \
    "그는 1975년에 태어난 <mask>이다." "이 회사의 <mask>는 새여울시에 있다." "그녀는 대학교에서 <mask>을 공부했다."

echo "== 4. Relation extraction: the post-trained model, and the same model before post-training"
[ -d $RUN/before ] || python -m trainer.export --checkpoint $RUN/xpt/checkpoints/step-0 --corpus $RUN/corpus --output-dir $RUN/before
python trainer/klue_re.py compare --model post-trained=$RUN/xpt/model before=$RUN/before --train-file $RUN/world/klue_re_train.json \
    --eval-file $RUN/world/klue_re_eval.json --seeds 0 --epochs 3 --learning-rate 2e-4 --output-dir $RUN/klue_re
python trainer/klue_re.py eval --model $RUN/klue_re/post-trained/seed-0 --data $RUN/world/klue_re_eval.json --report $RUN/report.json \
    --predictions $RUN/predictions.jsonl

echo "== 5. Summary"
python recipes/quickstart_summary.py $RUN
