#!/bin/sh
# The whole pipeline on the embedded default, set-up included: prototypes -> images -> soft labels -> students -> continual
# learning -> report, with ResNet-18 on digits, IPC 10, 5 tasks of 2 classes. No GPU, no download beyond packages.
# After installation at most 6 minutes on 2 CPU cores; QUICK=1 runs the same path with the smallest settings. The same command
# resumes and skips what is finished. The report lies in runs/quickstart/.
set -eu
cd "$(dirname "$0")/.."
. scripts/set_up.sh

if [ "${QUICK:-0}" = 1 ]; then
    RUN=${RUN:-runs/quickstart-quick} TEACHER_EPOCHS=1 EPOCHS=2 REAL_EPOCHS=1 STEPS=4
    TASK_STEPS="3 2 2"
else
    RUN=${RUN:-runs/quickstart}
    TEACHER_EPOCHS=4    # 88 steps; its test accuracy stands in the report
    EPOCHS=30           # 60 steps of 50 images for 100 images
    REAL_EPOCHS=3       # 84 steps of 50 images
    STEPS=20            # of the noise schedule, 6 of them run at strength 0.3
    TASK_STEPS="24 8 8" # per task: the small sets take a third of the steps
fi
IPC=10
STRENGTH=0.3            # the best of the sweep in the README
export RUN IPC STRENGTH STEPS
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # the same sums in the same order on any number of cores; two processes use two
mkdir -p "$RUN"

stage() {               # name, what it does, command ...
    name=$1; shift
    printf '\n== %s: %s\n' "$name" "$1"; shift
    started=$(date +%s)
    "$@"
    printf '{"stage": "%s", "seconds": %d}\n' "$name" "$(($(date +%s) - started))" >> "$RUN/stages.jsonl"
}

students() {            # arm, epochs, folder of images ("" for the real training split); both students side by side
    export ARM="$1" EPOCHS="$2" DATA="$3"
    LABELS=hard sh validate/train_FKD_digits.sh & hard=$!
    sh matching/matching_digits.sh
    LABELS=soft sh validate/train_FKD_digits.sh
    wait $hard
}

continual() {           # in two processes of about the same work
    export TASK_STEPS DISTILLED RANDOM_REAL OUTPUT_DIR="$RUN/continual"
    METHODS="agem joint" sh continual/continual_digits.sh & first=$!
    METHODS="er finetune task_arithmetic" sh continual/continual_digits.sh
    wait $first
}

DISTILLED=$RUN/distilled/digits_ipc10_10_s${STRENGTH}_g2.0_kmexpand1
RANDOM_REAL=$RUN/distilled/digits_random_ipc10

stage prototypes "k-means centroids of each class's latents" sh distillation/gen_prototype_digits.sh
stage images "one prototype -> one synthetic image" sh distillation/gen_syn_image_digits.sh
stage decoded "the prototypes, only decoded" env METHOD=prototype sh distillation/gen_syn_image_digits.sh
stage random "as many random real images" env METHOD=random sh distillation/gen_syn_image_digits.sh
stage teacher "a ResNet-18 on the real digits" env EPOCHS=$TEACHER_EPOCHS sh matching/train_teacher_digits.sh
stage distilled "soft labels and students of the distilled images" students distilled $EPOCHS "$DISTILLED"
stage random-students "the same for the random real images" students random $EPOCHS "$RANDOM_REAL"
stage real-students "the same for the whole training split" students real $REAL_EPOCHS ""
stage continual "5 tasks of 2 classes: five methods on real, random and distilled images" continual
stage report "tables, figures and one HTML page" python -m misc.report run "$RUN" \
    --command "${QUICK:+QUICK=$QUICK }sh scripts/quickstart.sh"
