#!/bin/sh
# Stage 4 in the paper's setting: students on ImageNet-1K, tested on $VAL/<wnid>/*. D4M's table (CVPR 2024), top-1 %, for
# ResNet-18 / 50 / 101: IPC 10 27.9 / 33.5 / 34.2, IPC 50 55.2 / 62.4 / 63.4. Users who ran the released code report 18.9 % at
# IPC 10.
# Computed, not measured: 11 / 25 / 47 GFLOP a view, forward and backward; at IPC 10 and 300 epochs, 3 million views, 33 / 74
# / 141 PFLOP or 0.5 / 1.0 / 2.0 hours at 20 TFLOP/s; IPC 50 five times that. PROTOCOL=rded: batches of 100, the teacher asked
# on the fly, half a cosine. Several GPUs share every batch of 1,024: LAUNCH="accelerate launch" sh validate/train_FKD.sh
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/imagenet}
IPC=${IPC:-10}
VAL=${VAL:-data/imagenet/val}
MODEL=${MODEL:-resnet18}
PROTOCOL=${PROTOCOL:-d4m}      # what it sets is printed; every value can be given after it

# the protocol names where labels come from: stored views, or the teacher with views of its own
case $PROTOCOL in
d4m) set -- --fkd-path "$RUN/soft-labels/imagenet_ipc${IPC}_label18" ;;
*) set -- --teacher-arch resnet18 --weights IMAGENET1K_V1 ;;
esac

${LAUNCH:-python} -m validate.train_FKD \
    --protocol "$PROTOCOL" \
    --model "$MODEL" \
    -j 8 \
    --bf16 \
    --output-dir "$RUN/students/imagenet_ipc${IPC}_label18_$MODEL-$PROTOCOL" \
    --train-dir "$RUN/distilled/imagenet_ipc${IPC}_${IPC}_s0.7_g8.0_kmexpand1" \
    --val-dir "$VAL" \
    "$@"
