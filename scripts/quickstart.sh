#!/bin/sh
# The whole pipeline on digits, set-up included: prototypes -> images -> soft labels -> students -> continual learning -> report
# with ResNet-18, IPC 10, 5 tasks of 2 classes. No GPU, no download but packages. After installation 5 to 12 minutes on 2 CPU
# cores; QUICK=1 runs the same path with the smallest settings. The same command resumes. The report is in runs/quickstart/.
set -eu
cd "$(dirname "$0")/.."
. scripts/set_up.sh

if [ "${QUICK:-0}" = 1 ]; then
    RUN=${RUN:-$PWD/runs/quickstart-quick}
    TEACHER_EPOCHS=1 EPOCHS=2 REAL_EPOCHS=1 STEPS=4 TASK_STEPS="3 2 2" MODEL=convnet_d2_w8 TEACHER_ARCH=convnet_d2_w8
    TEACHER=$RUN/teacher
else
    RUN=${RUN:-$PWD/runs/quickstart}
    TEACHER_EPOCHS=${TEACHER_EPOCHS:-4}         # 88 steps; the report has the teacher's test accuracy
    EPOCHS=${EPOCHS:-30}                        # 60 steps of 50 images for 100 images
    REAL_EPOCHS=${REAL_EPOCHS:-3}               # 84 steps of 50 images
    TASK_STEPS=${TASK_STEPS:-24 8 8}            # per task: the small sets take a third of the steps
fi
DATASET=digits
. scripts/settings.sh
export DATASET RUN TEACHER TEACHER_ARCH TEACHER_EPOCHS MODEL STEPS TASK_STEPS OUTPUT_DIR="$RUN/continual"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # the same sums in the same order on any number of cores; two processes use two
mkdir -p "$RUN"
if [ "$(uname)" = Linux ] && python -m misc.studies.warm "$RUN/.python" $$; then
    PATH="$RUN/.python:$PATH"                   # the stages fork from one Python that has loaded the libraries
fi

stage() {               # name, what it does, command ...
    printf '\n== %s: %s\n' "$1" "$2"
    stage=$1 started=$(date +%s)
    shift 2
    "$@"
    printf '{"stage": "%s", "seconds": %d}\n' "$stage" "$(($(date +%s) - started))" >> "$RUN/stages.jsonl"
}

students() {            # name, epochs, folder of images (empty: the real training images); both students side by side
    export EPOCHS="$2" DISTILLED="$3" SOFT_LABELS="$RUN/soft-labels/$1"
    LABELS=hard STUDENT=$RUN/students/$1-hard sh validate/train_FKD.sh & hard=$!
    sh matching/matching.sh
    LABELS=soft STUDENT=$RUN/students/$1-soft sh validate/train_FKD.sh
    wait "$hard"
}

continual() {           # in two processes of about the same work
    export DISTILLED="$images"
    METHODS="agem joint" sh continual/continual.sh --arch "$MODEL" & first=$!
    METHODS="er finetune task_arithmetic" sh continual/continual.sh --arch "$MODEL"
    wait "$first"
}

images=$DISTILLED
stage prototypes "k-means centroids of each class's latents" sh distillation/gen_prototype.sh
stage images "one prototype -> one synthetic image" sh distillation/gen_syn_image.sh
stage decoded "the prototypes, only decoded" env METHOD=prototype sh distillation/gen_syn_image.sh
stage random "as many random real images" env METHOD=random sh distillation/gen_syn_image.sh
stage teacher "a ResNet-18 on the real digits" sh matching/train_teacher.sh
stage distilled "soft labels and students of the distilled images" students distilled "$EPOCHS" "$images"
stage random-students "the same for the random real images" students random "$EPOCHS" "$RANDOM_REAL"
stage real-students "the same for the whole training split" students real "$REAL_EPOCHS" ""
stage continual "5 tasks of 2 classes: five methods on real, random and distilled images" continual
page=$RUN/report.html
if [ -f "$page" ] && [ -z "$(find "$RUN" -name result.json -newer "$page")" ]; then
    printf '\n%s: complete, nothing to do\n' "$page"
else
    stage report "tables, figures and one HTML page" python -m misc.report run "$RUN" \
        --command "${QUICK:+QUICK=$QUICK }sh scripts/quickstart.sh"
fi
