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
    TEACHER_EPOCHS=6    # about 97 % on the test split
    EPOCHS=60           # 120 steps of 50 images for 100 images
    REAL_EPOCHS=5       # 105 steps of up to 65 images
    STEPS=20            # of the noise schedule, 6 of them run at strength 0.3
    TASK_STEPS="30 10 10"  # per task: the small sets take a third of the steps
fi
IPC=10
STRENGTH=0.3            # the best of the sweep in the README
export RUN IPC STRENGTH STEPS
mkdir -p "$RUN"

stage() {               # name, what it does, command ...
    name=$1; shift
    printf '\n== %s: %s\n' "$name" "$1"; shift
    started=$(date +%s)
    "$@"
    printf '{"stage": "%s", "seconds": %d}\n' "$name" "$(($(date +%s) - started))" >> "$RUN/stages.jsonl"
}

students() {            # arm, epochs, folder of images ("" for the real training split)
    ARM=$1 EPOCHS=$2 DATA=$3 sh matching/matching_digits.sh
    ARM=$1 EPOCHS=$2 DATA=$3 LABELS=soft sh validate/train_FKD_digits.sh
    ARM=$1 EPOCHS=$2 DATA=$3 LABELS=hard sh validate/train_FKD_digits.sh
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
stage continual "5 tasks of 2 classes: five methods on real, random and distilled images" env TASK_STEPS="$TASK_STEPS" \
    DISTILLED="$DISTILLED" RANDOM_REAL="$RANDOM_REAL" OUTPUT_DIR="$RUN/continual" sh continual/continual_digits.sh
stage report "tables, figures and one HTML page" python -m scripts.report "$RUN"
