#!/usr/bin/env bash
# The whole road on an invented Korean world: dump -> corpus -> two-stage post-training on 2 ranks -> KLUE-RE -> report.
# Run it with `make quickstart`, or line by line to see what each command does. A second run goes on where the first stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=runs/quickstart
export OMP_NUM_THREADS=1  # two ranks on two cores

if [ ! -d $RUN/world ]; then
    python -m data_tools.world --output-dir $RUN/world
fi
python -m data_tools.prepare --input $RUN/world/wiki.xml --output-dir $RUN/corpus --vocab-size 8000
deepspeed --hostfile hostfiles/localhost --no_ssh_check --master_addr 127.0.0.1 trainer/xpt.py \
    --recipe recipes/quickstart.yaml --ds-config ds_configs/zero2_cpu.json
