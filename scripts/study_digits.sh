#!/bin/sh
# The digits tables: student accuracy at IPC 1, 2, 5, 10 for D4M images, decoded prototypes, random real images and the real
# training split, with hard and soft labels; one teacher, the same number of steps for every arm; and a sweep of strengths.
# SEEDS are independent and can run side by side: SEEDS=0 sh scripts/study_digits.sh & SEEDS=1 sh scripts/study_digits.sh
# The same command resumes. Then:
# python -m scripts.collect runs/study-digits misc/results/digits.json --kind teacher student && python -m scripts.tables
set -eu
cd "$(dirname "$0")/.."
. scripts/set_up.sh

STUDY=${STUDY:-runs/study-digits}
SEEDS=${SEEDS:-0 1 2}
IPCS=${IPCS:-1 2 5 10}
STRENGTHS=${STRENGTHS:-0.3 0.5 0.7 0.9}
SWEEP_IPCS=${SWEEP_IPCS:-1 2}    # where the strengths are swept; the arms are closer at larger IPC
STRENGTH=${STRENGTH:-0.3}        # the winner of the sweep: used at every IPC, and with soft labels
TEACHER=$STUDY/teacher
REAL_EPOCHS=6                    # 168 steps of 50 real images
export TEACHER

RUN=$STUDY SEED=0 EPOCHS=10 sh matching/train_teacher_digits.sh

student() {                      # arm, labels, epochs, folder of images ("" for the real training split)
    if [ "$2" = soft ]; then ARM=$1 EPOCHS=$3 DATA=$4 sh matching/matching_digits.sh; fi
    ARM=$1 LABELS=$2 EPOCHS=$3 DATA=$4 sh validate/train_FKD_digits.sh
}

for SEED in $SEEDS; do
    RUN=$STUDY/seed$SEED
    export SEED RUN
    for IPC in $IPCS; do
        export IPC
        EPOCHS=150; [ "$IPC" = 10 ] && EPOCHS=75          # 150 steps of at most 50 images
        sh distillation/gen_prototype_digits.sh
        METHOD=prototype sh distillation/gen_syn_image_digits.sh
        METHOD=random sh distillation/gen_syn_image_digits.sh
        case " $SWEEP_IPCS " in *" $IPC "*) HERE=$STRENGTHS ;; *) HERE=$STRENGTH ;; esac
        for S in $HERE; do
            STRENGTH=$S sh distillation/gen_syn_image_digits.sh
            student "d4m-s$S-ipc$IPC" hard $EPOCHS "$RUN/distilled/digits_ipc${IPC}_${IPC}_s${S}_g2.0_kmexpand1"
        done
        for METHOD in prototype random; do
            student $METHOD-ipc"$IPC" hard $EPOCHS "$RUN/distilled/digits_${METHOD}_ipc$IPC"
            student $METHOD-ipc"$IPC" soft $EPOCHS "$RUN/distilled/digits_${METHOD}_ipc$IPC"
        done
        student "d4m-s$STRENGTH-ipc$IPC" soft $EPOCHS "$RUN/distilled/digits_ipc${IPC}_${IPC}_s${STRENGTH}_g2.0_kmexpand1"
    done
    student real hard $REAL_EPOCHS ""
    student real soft $REAL_EPOCHS ""
done
