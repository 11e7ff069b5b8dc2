#!/usr/bin/env bash
# The recommended recipe for two CPU cores: a dump -> 16,000 pieces and memory-mapped tokens -> 21M tokens of post-training in an hour ->
# runs/minilm/model, a plain Hugging Face model.   bash recipes/minilm.sh DUMP [KLUE_DEV]
# KLUE_DEV: an evaluation file whose sentences are left out of the corpus. Interrupted, the same command goes on.
set -euo pipefail
export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
dump=$(realpath "${1:?usage: recipes/minilm.sh DUMP [KLUE_DEV]}")
exclude=(${2:+--exclude "$(realpath "$2")"})
cd "$(dirname "$0")/.."
ds_config=ds_configs/zero2_cpu.json
grep -qE "avx512_bf16|amx_bf16" /proc/cpuinfo || ds_config=ds_configs/zero2_cpu_fp32.json # where the processor has no bf16: slower
PATH="$PWD/.venv/bin:$PATH"
python -m data_tools.prepare --input "$dump" --output-dir corpora/minilm --vocab-size 16000 "${exclude[@]}"
deepspeed --hostfile hostfiles/localhost --no_ssh_check --master_addr 127.0.0.1 trainer/xpt.py --recipe recipes/minilm.yaml \
    --ds-config $ds_config --corpus corpora/minilm --output-dir runs/minilm
python trainer/fill_mask.py --model runs/minilm/model --top 4 "대한민국의 수도는 <mask>이다." "그는 대학교에서 <mask>을 공부했다."
