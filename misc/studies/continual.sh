#!/bin/sh
# The continual tables on digits at IPC 10, 5 tasks of 2 classes: six methods on real images, on real images at the steps of the
# small sets, on random real images, and on distilled images with hard and with a teacher's soft labels; ResNet-18, or ResNet-50
# with NETWORKS=resnet50 SEEDS="0 1 2" FLAGS=--bf16. Then Task Arithmetic from other starts, with and without a head refitted on
# the memory (START_SEEDS, the first network). Each seed has its own images. The schedule was chosen on seeds 0, 1, 10 and 11;
# the published seeds are 20 and up. The same command resumes. Then:
# for what in resnet18 resnet50 starts; do
#     python -m misc.report collect runs/study-continual misc/results/continual_digits_$what.jsonl \
#         --only $what 'seed*' teacher --command "sh misc/studies/continual.sh"
# done
# python -m misc.report tables
set -eu
cd "$(dirname "$0")/../.."
STUDY=${STUDY:-runs/study-continual}
. misc/studies/common.sh
DATA_NAME=digits IPC=10                # of the images

NETWORKS=${NETWORKS:-resnet18} FLAGS=${FLAGS:-}      # flags are those of every run
SEEDS=${SEEDS:-0 1 2 3 4} START_SEEDS=${START_SEEDS-0 1 2}      # of images; runs have these + 20
METHODS=${METHODS:-finetune joint er agem derpp task_arithmetic}
CLAIMED=${CLAIMED:-er agem task_arithmetic}     # on real images with soft labels too: the teacher alone helps
REAL_STEPS=${REAL_STEPS:-42} SMALL_STEPS=${SMALL_STEPS:-14}     # per task of 16 + 48 images; the small sets take a third

runs() {                         # output folder, methods, flags that name the streams ...
    output=$1; methods=$2; shift 2
    echo "continual.train_continual --dataset digits --method $methods --seed $((SEED + 20)) --arch $NETWORK --tasks 5" \
        "--distilled $(images_of s0.3) --random $(images_of random)" \
        "--batch-size 16 --replay-batch-size 48 --buffer-size 100 --output-dir $STUDY/$output $FLAGS $*"
}

commands() {
    for NETWORK in $NETWORKS; do
        for SEED in $SEEDS; do
            P=$STUDY/seed$SEED SOFT="--labels soft --teacher $STUDY/teacher"
            runs "$NETWORK" "$METHODS" --stream real random distilled --steps "$REAL_STEPS" "$SMALL_STEPS" "$SMALL_STEPS"
            runs "$NETWORK" "$METHODS" --stream distilled --steps "$SMALL_STEPS" "$SOFT"
            runs "$NETWORK/same-steps" "$METHODS" --stream real --steps "$SMALL_STEPS"
            runs "$NETWORK" "$CLAIMED" --stream random --steps "$SMALL_STEPS" "$SOFT"
            runs "$NETWORK/same-steps" "$CLAIMED" --stream real --steps "$SMALL_STEPS" "$SOFT"
            echo
        done
    done
    NETWORK=${NETWORKS%% *}
    for SEED in $START_SEEDS; do
        P=$STUDY/seed$SEED
        for start in random task1 distilled; do
            for refit in 0 50; do
                runs "starts/$NETWORK-$start-refit$refit" task_arithmetic --stream real distilled \
                    --steps "$REAL_STEPS" "$SMALL_STEPS" --start "$start" --refit-head "$refit"
            done
        done
        echo
    done
}

digits_teacher
batch digits_sets
batch commands
