#!/bin/sh
# The digits tables: accuracy of ResNet-18 students at IPC 1, 2, 5, 10, trained on images made in every way of this repository,
# on as many real images, and on the real training split, with hard and soft labels; one teacher, the same number of steps.
# Then ER and Task Arithmetic on the images of COMPARED at IPC 1 and 10, in 5 tasks of 2 classes.
# About 350 students, 24 of them of SRe2L and MTT. 80 minutes on 2 CPU cores without these two, which take as long again. The
# same command resumes; SEEDS, IPCS, ARMS and COMPARED (empty: none) run a part of it. Then:
# python -m misc.report collect runs/study-digits misc/results/digits.jsonl --kind teacher student continual distilled \
#     --command "sh misc/studies/digits.sh"
# python -m misc.report tables
set -eu
cd "$(dirname "$0")/../.."
STUDY=${STUDY:-runs/study-digits}
. misc/studies/common.sh

SEEDS=${SEEDS:-0 1 2} IPCS=${IPCS:-10 1 2 5} TEACHER=$STUDY/teacher
STRENGTHS=${STRENGTHS:-0.3 0.5 0.7 0.9} STRENGTH=0.3      # the best of the sweep, for weights, medoids and lof
ARMS=${ARMS:-d4m weights medoid lof mode filter prototype random herding kcenter noise sre2l mtt real}
COMPARED=${COMPARED-d4m random sre2l mtt}       # those of ARMS are streams of continual learning
DATA_NAME=digits MAKE="--dataset digits" VIEWS="--input-size 32 --min-scale-crops 0.6 --flip 0"

students() {                     # arm, epochs, the arm that has the soft labels, flags ...
    name=$1 epochs=$2 labelled=$3; shift 3
    for LABELS in hard soft; do
        HOW="--fkd-path $P/soft-labels/$labelled -T 20"
        [ "$LABELS" = soft ] || HOW=$VIEWS
        echo "validate.train_FKD --dataset digits --labels $LABELS --model resnet18 --epochs $epochs --batch-size 50 --cos" \
            "--seed $SEED --output-dir $P/students/$name-$LABELS $HOW $*"
    done
}

learn() {                        # arm, folder of its images
    soft_labels "$P/soft-labels/$1-ipc$IPC" "$2" "$EPOCHS" --dataset digits --fkd-seed 42
    students "$1-ipc$IPC" "$EPOCHS" "$1-ipc$IPC" --train-dir "$2"
}

arm() {                          # arm, way: images and those who learn from them
    images "$2"
    learn "$1" "$(images_of "$2")"
}

commands() {
    for IPC in $IPCS; do
        case $IPC in 10) EPOCHS=50 ;; 5) EPOCHS=60 ;; *) EPOCHS=100 ;; esac     # 100 steps; 60 at IPC 5
        for SEED in $SEEDS; do
            P=$STUDY/seed$SEED
            prototypes --kmeans full
            for ARM in $ARMS; do
                case $ARM in
                d4m) for S in $STRENGTHS; do arm "d4m-s$S" "s$S"; done ;;
                weights) students "weights-ipc$IPC" "$EPOCHS" "d4m-s$STRENGTH-ipc$IPC" --cluster-weights \
                        --train-dir "$(images_of distilled)" ;;
                medoid) prototypes --kmeans full --prototype medoid
                    arm medoid medoid ;;
                lof) [ "$IPC" = 10 ] || continue      # where clusters are many and outliers get one of their own
                    prototypes --kmeans full --outliers lof
                    arm lof lof ;;
                filter) images s0.7 --filter_teacher "$TEACHER" --candidates 4
                    learn filter "$(images_of s0.7)_filter4" ;;
                sre2l) [ "$IPC" = 1 ] || [ "$IPC" = 10 ] || continue        # the comparators take the longest
                    echo "distillation.sre2l --teacher $TEACHER --ipc $IPC --steps 1000 --min-scale-crops 0.6 --flip 0" \
                        "--seed $SEED --save_init_image_path $P/distilled"
                    learn sre2l "$(images_of sre2l)" ;;
                mtt) [ "$IPC" = 1 ] || [ "$IPC" = 10 ] || continue          # in small settings, for a CPU
                    echo "distillation.mtt --dataset digits --arch convnet_d3_w32 --ipc $IPC --experts 5 --expert_epochs 15" \
                        "--iterations 500 --student_steps 10 --student_batch 50 --seed $SEED --experts_path $P/experts" \
                        "--save_init_image_path $P/distilled"
                    learn mtt "$(images_of mtt)" ;;
                real) ;;         # below
                *) arm "$ARM" "$ARM" ;;
                esac
            done
            echo
        done
    done
    case " $ARMS " in *" real "*) ;; *) return ;; esac
    for SEED in $SEEDS; do
        P=$STUDY/seed$SEED
        soft_labels "$P/soft-labels/real" "" 4 --dataset digits --fkd-seed 42     # 112 steps of 49 real images
        students real 4 real
        echo
    done
}

streams() {                      # steps, memory and learning as in misc/studies/continual.sh
    for SEED in $SEEDS; do
        P=$STUDY/seed$SEED
        for IPC in 1 10; do
            case " $IPCS " in *" $IPC "*) ;; *) continue ;; esac
            for ARM in $COMPARED; do
                case " $ARMS " in *" $ARM "*) ;; *) continue ;; esac
                case $ARM in d4m) WAY=distilled ;; *) WAY=$ARM ;; esac
                for LABELS in "hard" "soft --teacher $TEACHER"; do
                    echo "continual.train_continual --dataset digits --method er task_arithmetic --stream distilled --tasks 5" \
                        "--distilled $(images_of "$WAY") --steps 14 --batch-size 16 --replay-batch-size 48 --buffer-size 100" \
                        "--seed $((SEED + 20)) --labels $LABELS --output-dir $P/streams/$ARM-ipc$IPC"
                done
            done
        done
        echo
    done
}

digits_teacher
batch commands
batch streams
