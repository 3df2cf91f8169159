#!/bin/sh
# The digits tables: accuracy of ResNet-18 students at IPC 1, 2, 5, 10, trained on images made in every way of this repository,
# on as many real images, and on the real training split, with hard and soft labels; one teacher, the same number of steps.
# About 340 students; 80 minutes on 2 CPU cores. The same command resumes; SEEDS, IPCS and ARMS run a part of it. Then:
# python -m misc.report.collect runs/study-digits misc/results/digits.json --kind teacher student \
#     --command "sh misc/studies/digits.sh"
# python -m misc.report.tables
set -eu
cd "$(dirname "$0")/../.."
STUDY=${STUDY:-runs/study-digits}
. misc/studies/common.sh

SEEDS=${SEEDS:-0 1 2} IPCS=${IPCS:-10 1 2 5}
STRENGTHS=${STRENGTHS:-0.3 0.5 0.7 0.9} STRENGTH=0.3      # the best of the sweep, for weights, medoids and lof
ARMS=${ARMS:-d4m weights medoid lof mode filter prototype random herding kcenter noise real}
TEACHER=$STUDY/teacher

prototypes() {                   # flags ...
    echo "distillation.gen_prototype --dataset digits --ipc $IPC --kmeans full --seed $SEED" \
        "--save_prototype_path $RUN/prototypes $*"
}

images() {                       # flags ...
    echo "distillation.gen_syn_image --dataset digits --ipc $IPC --guidance_scale 2 --num_inference_steps 20" \
        "--negative_prompt '' --seed $SEED --save_init_image_path $RUN/distilled $*"
}

labels() {                       # arm, epochs, flags that name the images ...
    arm=$1 epochs=$2; shift 2
    echo "matching.generate_soft_label --dataset digits --teacher $TEACHER --epochs $epochs --fkd-seed 42 --input-size 32" \
        "--min-scale-crops 0.6 --flip 0 --mix-type cutmix --use-fp16 --fkd-path $RUN/soft-labels/$arm $*"
}

student() {                      # arm, labels, epochs, flags ...
    arm=$1 kind=$2 epochs=$3; shift 3
    echo "validate.train_FKD --dataset digits --labels $kind --model resnet18 --epochs $epochs --batch-size 50 --cos" \
        "--seed $SEED --output-dir $RUN/students/$arm-$kind $*"
}

students() {                     # arm, epochs, the arm that has the soft labels, flags ...
    name=$1 count=$2 labelled=$3; shift 3
    student "$name" hard "$count" --input-size 32 --min-scale-crops 0.6 --flip 0 "$@"
    student "$name" soft "$count" --fkd-path "$RUN/soft-labels/$labelled" -T 20 "$@"
}

arm() {                          # name, folder of its images
    labels "$1-ipc$IPC" "$EPOCHS" --data "$RUN/distilled/$2"
    students "$1-ipc$IPC" "$EPOCHS" "$1-ipc$IPC" --train-dir "$RUN/distilled/$2"
}

commands() {
    for IPC in $IPCS; do
        case $IPC in 10) EPOCHS=50 ;; 5) EPOCHS=60 ;; *) EPOCHS=100 ;; esac     # 100 steps; 60 at IPC 5
        for SEED in $SEEDS; do
            RUN=$STUDY/seed$SEED P=$STUDY/seed$SEED/prototypes/digits-ipc$IPC-kmexpand1
            D4M=digits_ipc${IPC}_${IPC}_s END=_g2.0_kmexpand1
            prototypes
            for ARM in $ARMS; do
                case $ARM in
                d4m) for S in $STRENGTHS; do
                        images --prototype_path "$P" --strength "$S"
                        arm "d4m-s$S" "$D4M$S$END"
                    done ;;
                weights) students "weights-ipc$IPC" "$EPOCHS" "d4m-s$STRENGTH-ipc$IPC" --cluster-weights \
                        --train-dir "$RUN/distilled/$D4M$STRENGTH$END" ;;
                medoid) prototypes --prototype medoid
                    images --prototype_path "$P-medoid" --strength "$STRENGTH"
                    arm medoid "$D4M$STRENGTH${END}_medoid" ;;
                lof) [ "$IPC" = 10 ] || continue      # where clusters are many and outliers get one of their own
                    prototypes --outliers lof
                    images --prototype_path "$P-lof" --strength "$STRENGTH"
                    arm lof "$D4M$STRENGTH${END}_lof" ;;
                mode) images --prototype_path "$P" --guidance mode --mode_scale 0.1 --stop_t 10
                    arm mode "digits_ipc${IPC}_${IPC}_mode0.1-10$END" ;;
                filter) images --prototype_path "$P" --strength 0.7 --filter_teacher "$TEACHER" --candidates 4
                    arm filter "${D4M}0.7${END}_filter4" ;;
                prototype) images --prototype_path "$P" --method prototype
                    arm prototype "digits_prototype_ipc$IPC" ;;
                random | herding | kcenter | noise) images --method "$ARM"
                    arm "$ARM" "digits_${ARM}_ipc$IPC" ;;
                esac
            done
            echo
        done
    done
    case " $ARMS " in *" real "*)
        for SEED in $SEEDS; do
            RUN=$STUDY/seed$SEED
            labels real 4        # epochs: 112 steps of 49 real images
            students real 4 real
            echo
        done ;;
    esac
}

digits_teacher
batch commands
