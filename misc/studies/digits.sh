#!/bin/sh
# The digits tables: accuracy of ResNet-18 students at IPC 1, 2, 5, 10, trained on images made in every way of this repository,
# on as many real images, and on the real training split, with hard and soft labels; one teacher, the same number of steps.
# Then ER and Task Arithmetic on the images of COMPARED at IPC 1 and 10, in 5 tasks of 2 classes.
# About 340 students, 80 minutes on 2 CPU cores, without SRe2L and MTT; the two take as long again. The same command resumes;
# SEEDS, IPCS, ARMS and COMPARED (empty: none) run a part of it. Then:
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

labels() {                       # arm, epochs, flags that name the images ...
    name=$1 epochs=$2; shift 2
    echo "matching.generate_soft_label --dataset digits --teacher $TEACHER --epochs $epochs --fkd-seed 42 --input-size 32" \
        "--min-scale-crops 0.6 --flip 0 --mix-type cutmix --use-fp16 --fkd-path $P/soft-labels/$name $*"
}

students() {                     # arm, epochs, the arm that has the soft labels, flags ...
    name=$1 epochs=$2 labelled=$3; shift 3
    for LABELS in hard soft; do
        HOW="--fkd-path $P/soft-labels/$labelled -T 20"
        [ "$LABELS" = soft ] || HOW="--input-size 32 --min-scale-crops 0.6 --flip 0"
        echo "validate.train_FKD --dataset digits --labels $LABELS --model resnet18 --epochs $epochs --batch-size 50 --cos" \
            "--seed $SEED --output-dir $P/students/$name-$LABELS $HOW $*"
    done
}

arm() {                          # name, folder of its images
    labels "$1-ipc$IPC" "$EPOCHS" --data "$P/distilled/$2"
    students "$1-ipc$IPC" "$EPOCHS" "$1-ipc$IPC" --train-dir "$P/distilled/$2"
}

commands() {
    for IPC in $IPCS; do
        case $IPC in 10) EPOCHS=50 ;; 5) EPOCHS=60 ;; *) EPOCHS=100 ;; esac     # 100 steps; 60 at IPC 5
        for SEED in $SEEDS; do
            P=$STUDY/seed$SEED START=$STUDY/seed$SEED/prototypes/digits-ipc$IPC-kmexpand1
            D4M=digits_ipc${IPC}_${IPC}_s END=_g2.0_kmexpand1
            digits_prototypes
            for ARM in $ARMS; do
                case $ARM in
                d4m) for S in $STRENGTHS; do
                        digits_images --prototype_path "$START" --strength "$S"
                        arm "d4m-s$S" "$D4M$S$END"
                    done ;;
                weights) students "weights-ipc$IPC" "$EPOCHS" "d4m-s$STRENGTH-ipc$IPC" --cluster-weights \
                        --train-dir "$P/distilled/$D4M$STRENGTH$END" ;;
                medoid) digits_prototypes --prototype medoid
                    digits_images --prototype_path "$START-medoid" --strength "$STRENGTH"
                    arm medoid "$D4M$STRENGTH${END}_medoid" ;;
                lof) [ "$IPC" = 10 ] || continue      # where clusters are many and outliers get one of their own
                    digits_prototypes --outliers lof
                    digits_images --prototype_path "$START-lof" --strength "$STRENGTH"
                    arm lof "$D4M$STRENGTH${END}_lof" ;;
                mode) digits_images --prototype_path "$START" --guidance mode --mode_scale 0.1 --stop_t 10
                    arm mode "digits_ipc${IPC}_${IPC}_mode0.1-10$END" ;;
                filter) digits_images --prototype_path "$START" --strength 0.7 --filter_teacher "$TEACHER" --candidates 4
                    arm filter "${D4M}0.7${END}_filter4" ;;
                prototype) digits_images --prototype_path "$START" --method prototype
                    arm prototype "digits_prototype_ipc$IPC" ;;
                sre2l) [ "$IPC" = 1 ] || [ "$IPC" = 10 ] || continue        # the comparators take the longest
                    echo "distillation.sre2l --teacher $TEACHER --ipc $IPC --steps 1000 --min-scale-crops 0.6 --flip 0" \
                        "--seed $SEED --save_init_image_path $P/distilled"
                    arm sre2l "digits_sre2l_ipc$IPC" ;;
                mtt) [ "$IPC" = 1 ] || [ "$IPC" = 10 ] || continue          # in small settings, for a CPU
                    echo "distillation.mtt --dataset digits --arch convnet_d3_w32 --ipc $IPC --experts 5 --expert_epochs 15" \
                        "--iterations 500 --student_steps 10 --student_batch 50 --seed $SEED --experts_path $P/experts" \
                        "--save_init_image_path $P/distilled"
                    arm mtt "digits_mtt_ipc$IPC" ;;
                random | herding | kcenter | noise) digits_images --method "$ARM"
                    arm "$ARM" "digits_${ARM}_ipc$IPC" ;;
                esac
            done
            echo
        done
    done
    case " $ARMS " in *" real "*) ;; *) return ;; esac
    for SEED in $SEEDS; do
        P=$STUDY/seed$SEED
        labels real 4            # epochs: 112 steps of 49 real images
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
                FOLDER=digits_${ARM}_ipc$IPC
                [ "$ARM" != d4m ] || FOLDER=digits_ipc${IPC}_${IPC}_s${STRENGTH}_g2.0_kmexpand1
                for LABELS in "hard" "soft --teacher $TEACHER"; do
                    echo "continual.train_continual --dataset digits --method er task_arithmetic --stream distilled --tasks 5" \
                        "--distilled $P/distilled/$FOLDER --steps 14 --batch-size 16 --replay-batch-size 48 --buffer-size 100" \
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
