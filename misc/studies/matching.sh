#!/bin/sh
# What the protocol, the labels and the student's architecture do, on digits: 10 images per class, distilled and random real.
#   protocols: ResNet-18 and ResNet-50 x {distilled, random} x {hard, soft} x {d4m, rded}
#   storage:   ResNet-18 on whole soft labels, on their leading logits, on a share of their epochs
#   cross:     one teacher, many architectures (the layout of the paper's table 5)
# EPOCHS instead of the 300 of both protocols, everything else as they say. PARTS, SEEDS and MODELS run a part of it; the same
# command resumes. DATASET=folder DATA=... studies another set, from DISTILLED, RANDOM_REAL and TEACHER made before. Then:
# python -m misc.report collect runs/study-matching misc/results/matching_digits.jsonl --kind teacher student soft_labels \
#     --command "sh misc/studies/matching.sh"
# python -m misc.report tables
set -eu
cd "$(dirname "$0")/../.."
STUDY=${STUDY:-runs/study-matching}
. misc/studies/common.sh
DATA_NAME=digits IPC=10                # of the images

PARTS=${PARTS:-protocols storage cross} SEEDS=${SEEDS:-0 1 2} EPOCHS=${EPOCHS:-60} MODELS=${MODELS:-resnet18 resnet50}
DATASET=${DATASET:-digits} DATA=${DATA:-data} TEACHER=${TEACHER:-$STUDY/teacher}
VIEWS="--input-size 32 ${VIEWS:---min-scale-crops 0.6 --flip 0}"        # digits are not symmetric
STUDENTS=${STUDENTS:-resnet18 resnet50 mobilenet_v2 efficientnet_b0 swin_t vit_b_16 convnet_d3_w128}
SMALL="--protocol d4m --batch-size 50 --gradient-accumulation-steps 1"      # one batch of the protocol is too few steps

student() {                      # name, folder of the images, flags ...
    name=$1 data=$2; shift 2
    echo "validate.train_FKD --train-dir $data --dataset $DATASET --data_dir $DATA --epochs $EPOCHS --seed $SEED --bf16" \
        "--output-dir $P/students/$name $*"
}

protocols() {
    for ARM in distilled random; do
        case $ARM in distilled) SET=$DISTILLED_OF ;; *) SET=$RANDOM_OF ;; esac
        soft_labels "$P/soft-labels/$ARM" "$SET" "$EPOCHS" --fkd-seed 42
        for MODEL in $MODELS; do
            for PROTOCOL in d4m rded; do
                NAME=protocols/$ARM-$MODEL-$PROTOCOL HOW="--protocol $PROTOCOL --model $MODEL"
                student "$NAME-hard" "$SET" "$HOW" --labels hard "$VIEWS"
                case $PROTOCOL in
                d4m) student "$NAME-soft" "$SET" "$HOW" --fkd-path "$P/soft-labels/$ARM" ;;
                rded) student "$NAME-soft" "$SET" "$HOW" --teacher "$TEACHER" "$VIEWS" ;;
                esac
            done
        done
    done
}

storage() {
    for KEPT in whole topk1 topk2 topk3 topk5 epochs0.5 epochs0.2 epochs0.1 epochs0.05 topk2-epochs0.1; do
        FLAGS=$(echo "-$KEPT" | sed -e 's/-whole//' -e 's/-topk/ --keep-topk /' -e 's/-epochs/ --keep-epochs /')
        soft_labels "$P/soft-labels/storage-$KEPT" "$DISTILLED_OF" "$EPOCHS" --fkd-seed 42 "$FLAGS"
        student "storage/$KEPT" "$DISTILLED_OF" "$SMALL" --fkd-path "$P/soft-labels/storage-$KEPT"
    done
}

cross() {
    soft_labels "$P/soft-labels/distilled" "$DISTILLED_OF" "$EPOCHS" --fkd-seed 42
    for MODEL in $STUDENTS; do
        student "cross/$MODEL" "$DISTILLED_OF" "$SMALL" --fkd-path "$P/soft-labels/distilled" --model "$MODEL"
    done
}

commands() {
    for PART in $PARTS; do
        for SEED in $SEEDS; do
            P=$STUDY/seed$SEED   # images of its own, unless folders are given
            DISTILLED_OF=${DISTILLED:-$(images_of s0.3)}
            RANDOM_OF=${RANDOM_REAL:-$(images_of random)}
            $PART
            echo
        done
    done
}

if [ "$DATASET" = digits ]; then
    digits_teacher
    batch digits_sets
fi
batch commands
