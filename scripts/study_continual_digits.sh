#!/bin/sh
# The continual tables on digits at IPC 2 and IPC 10: five methods on real, random and distilled streams, 5 tasks of 2 classes,
# ResNet-18. Uses the sets of scripts/study_digits.sh, one per seed, so that each seed has its own images too. The schedule was
# chosen on seeds 0, 1, 10 and 11; the published seeds are 20, 21 and 22. The same command resumes.
set -eu
cd "$(dirname "$0")/.."
. scripts/set_up.sh

STUDY=${STUDY:-runs/study-digits}
SETS=${SETS:-0 1 2}              # seeds of the image sets; SETS=0 and SETS=1 can run side by side
STRENGTH=${STRENGTH:-0.3}

for SET in $SETS; do
    export SEEDS=$((SET + 20))
    for IPC in 10 2; do
        OUTPUT_DIR=$STUDY/continual-ipc$IPC
        if [ "$IPC" = 2 ]; then  # real streams know nothing of the IPC, but for Task Arithmetic's start: done above
            for METHOD in finetune joint er agem; do
                mkdir -p "$OUTPUT_DIR"
                cp -R "$STUDY/continual-ipc10/$METHOD-real-seed$SEEDS" "$OUTPUT_DIR/"
            done
        fi
        IPC=$IPC OUTPUT_DIR=$OUTPUT_DIR \
            DISTILLED=$STUDY/seed$SET/distilled/digits_ipc${IPC}_${IPC}_s${STRENGTH}_g2.0_kmexpand1 \
            RANDOM_REAL=$STUDY/seed$SET/distilled/digits_random_ipc$IPC \
            sh continual/continual_digits.sh
    done
    # real images with the steps of the small sets: what is saved by taking fewer steps alone
    OUTPUT_DIR=$STUDY/continual-same-steps IPC=10 METHODS="er task_arithmetic joint" STREAMS=real TASK_STEPS=14 \
        DISTILLED=$STUDY/seed$SET/distilled/digits_ipc10_10_s${STRENGTH}_g2.0_kmexpand1 \
        RANDOM_REAL=$STUDY/seed$SET/distilled/digits_random_ipc10 sh continual/continual_digits.sh
done
