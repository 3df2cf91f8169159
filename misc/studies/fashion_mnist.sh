#!/bin/sh
# Fashion-MNIST, from a diffusion model to the tables: two teachers, images made in the ways of ARMS at IPC 1 and 10,
# ConvNet-W128 students with hard labels and ResNet-18 students with soft ones; each seed has its own images. 5,000 training
# images stay out of all of these; with the test images as the test, streams of all real images have them. CHOOSE=1 tests the
# students of every strength, and the streams, on these; without it the chosen strength and the other ways are tested on the
# 10,000 test images. Then continual learning in 5 tasks of 2 classes: on all real images for 1, 1/3 and 1/4 epoch, on 50
# images a class of STREAM_ARMS for as many steps as 1/3 and 1/4. PRIOR names the diffusion model; the shipped one has not
# seen the 5,000 images either.
# The defaults take two cores 5 hours (with matrix units, such as AMX) to 15. More has been run in part, or not at all:
# IPCS="1 10 50" ARMS="distilled medoid prototype noise mode herding kcenter random autoencoder sre2l mtt" LEARNERS=resnet50
# METHODS="finetune joint agem derpp" MEMORIES="200 500" STREAM_ARMS="random distilled member" STREAM_IPCS="10 50 100"
# STREAM_LABELS="hard soft" REAL_PARTS="16 8 2" SMALL_PARTS="16 8 2". PARTS runs a part; the same command resumes. Then:
# python -m misc.report collect runs/study-fashion_mnist misc/results/fashion_mnist.jsonl --only 'seed*' 'teacher*' continual \
#     --command "sh misc/studies/fashion_mnist.sh"
# python -m misc.report collect runs/study-fashion_mnist/choice misc/results/fashion_mnist_choice.jsonl \
#     --kind student continual --command "CHOOSE=1 sh misc/studies/fashion_mnist.sh"
# python -m misc.report tables
set -eu
cd "$(dirname "$0")/../.."

STUDY=${STUDY:-runs/study-fashion_mnist} DATA=${DATA:-data} PRIOR=${PRIOR:-distillation/checkpoints/fashion-ldm}
PARTS=${PARTS:-teachers sets students continual} CHOOSE=${CHOOSE:-} VALIDATION=${VALIDATION:-5000}
SEEDS=${SEEDS:-0 1 2 3 4} IPCS=${IPCS:-1 10} KINDS=${KINDS:-convnet_d3_w128-hard resnet18-soft}   # network, labels
STRENGTH_1=${STRENGTH_1:-0.7} STRENGTH_10=${STRENGTH_10:-0.7} STRENGTH_50=${STRENGTH_50:-0.7}
STRENGTHS=${STRENGTHS:-0.3 0.5 0.7 0.9} STRENGTH=${MEDOID_STRENGTH:-0.3}     # the last of medoids and members
ARMS=${ARMS:-distilled medoid prototype random}
SRE2L_STEPS=${SRE2L_STEPS:-1000} MTT_STEPS=${MTT_STEPS:-300}
NETWORKS=${NETWORKS:-convnet_d3_w64_bn resnet18} TEACHER_EPOCHS=${TEACHER_EPOCHS:-10} STEPS=${STEPS:-20}
METHODS=${METHODS:-er task_arithmetic} LEARNERS=${LEARNERS:-resnet18} MEMORIES=${MEMORIES:-500}
STREAM_CROPS=${STREAM_CROPS:-1}  # the smallest crop's share of an image; whole images were far better on the 5,000 than 0.35
STREAM_ARMS=${STREAM_ARMS:-random distilled}    # of the small streams; or others of ARMS, decoded-medoid
STREAM_IPCS=${STREAM_IPCS-50} STREAM_LABELS=${STREAM_LABELS:-hard} REAL_LABELS=${REAL_LABELS:-hard}     # or "hard soft"
EPOCH_STEPS=${EPOCH_STEPS:-375} REAL_PARTS=${REAL_PARTS-4 3 1} SMALL_PARTS=${SMALL_PARTS:-4 3}  # of a task; 4: a quarter
. misc/studies/common.sh

SOURCE="--dataset fashion_mnist --data_dir $DATA" HELD_OUT="--validation $VALIDATION" TEACHER=$STUDY/teacher-${NETWORKS%% *}
DATA_NAME=fashion_mnist MAKE="$SOURCE $HELD_OUT --diffusion_checkpoints_path $PRIOR"
OUT=$STUDY${CHOOSE:+/choice} TESTED="$SOURCE${CHOOSE:+ $HELD_OUT}"
VIEWS="--input-size 32 --min-scale-crops 0.35 --flip 0.5"
HARD_LABELS="--input-size 32 --min-scale-crops 1 --flip 0.5 --sgd -lr 0.01 --momentum 0.9 --weight-decay 5e-4"

teachers() {                     # the first one labels, the second is of another architecture
    export DATA VALIDATION TEACHER_EPOCHS
    processes='' failed=''
    for NETWORK in $NETWORKS; do
        DATASET=fashion_mnist TEACHER_ARCH=$NETWORK TEACHER=$STUDY/teacher-$NETWORK sh matching/train_teacher.sh &
        processes="$processes $!"
    done
    for process in $processes; do wait "$process" || failed=1; done
    [ -z "$failed" ]
}

chosen() {
    case $IPC in 1) echo "$STRENGTH_1" ;; 10) echo "$STRENGTH_10" ;; *) echo "$STRENGTH_50" ;; esac
}

strengths() {
    [ -z "$CHOOSE" ] && chosen || echo "$STRENGTHS"
}

arms() {                         # ways: a line for each: its name and its way, as `images` knows it
    for ARM in $1; do
        case $ARM in
        distilled) for S in $(strengths); do echo "distilled${CHOOSE:+-s$S} s$S"; done ;;
        medoid | member) echo "$ARM${CHOOSE:+-s$STRENGTH} $ARM" ;;
        *) echo "$ARM $ARM" ;;
        esac
    done
}

sets() {
    for SEED in $SEEDS; do
        P=$STUDY/seed$SEED PER_CLASS=$(echo "$IPCS $STREAM_IPCS" | xargs -n 1 | sort -nu | xargs)
        prototypes_of_arms --kmeans minibatch
        for IPC in $PER_CLASS; do
            case " $IPCS " in *" $IPC "*) WAYS=$ARMS ;; *) WAYS= ;; esac
            case " $STREAM_IPCS " in *" $IPC "*) WAYS="$WAYS $STREAM_ARMS" ;; esac
            arms "$WAYS" | sort -u | while read -r _ WAY; do
                case $WAY in
                sre2l) echo "distillation.sre2l --teacher $TEACHER --ipc $IPC --steps $SRE2L_STEPS" \
                        "--min-scale-crops 0.35 --flip 0.5 --seed $SEED --save_init_image_path $P/distilled" ;;
                mtt) echo "distillation.mtt $SOURCE $HELD_OUT --arch convnet_d3_w32 --ipc $IPC --experts 3 --expert_epochs 4" \
                        "--iterations $MTT_STEPS --student_steps 10 --last_start 2 --student_batch 50 --seed $SEED" \
                        "--experts_path $P/experts --save_init_image_path $P/distilled" ;;
                *) images "$WAY" ;;
                esac
            done
        done
        echo
    done
}

students() {                     # 300, 600, 1,500 steps with hard labels at IPC 1, 10, 50; 400, 400, 1,000 with soft ones
    for IPC in $IPCS; do
        case $IPC in 1) HARD=300 SOFT=400 ;; 10) HARD=300 SOFT=200 ;; *) HARD=150 SOFT=100 ;; esac
        for SEED in $SEEDS; do
            P=$STUDY/seed$SEED
            arms "$ARMS" | while read -r ARM WAY; do
                for KIND in $KINDS; do
                    case $KIND in
                    *-soft) LAST=${EPOCHS:-$SOFT} HOW="--fkd-path $P/soft-labels/$ARM-ipc$IPC -T 20"
                        soft_labels "$P/soft-labels/$ARM-ipc$IPC" "$(images_of "$WAY")" "$LAST" "$HELD_OUT" \
                            --fkd-seed "$((42 + SEED))" ;;
                    *) LAST=${EPOCHS:-$HARD} HOW="$HARD_LABELS" ;;
                    esac
                    echo "validate.train_FKD $TESTED --train-dir $(images_of "$WAY") --labels ${KIND##*-} --model ${KIND%-*}" \
                        "--epochs $LAST --batch-size 50 --cos --bf16 --seed $SEED" \
                        "--output-dir $OUT/seed$SEED/students/$KIND-$ARM-ipc$IPC $HOW"
                done
            done
            echo
        done
    done
}

learn() {                        # labels, flags that name the streams ...
    HOW="--labels $1"
    [ "$1" = hard ] || HOW="$HOW --teacher $TEACHER"
    shift
    echo "continual.train_continual $TESTED --method $METHODS --seed $SEED --arch $LEARNER --tasks 5 --flip 0.5" \
        "--min-scale-crops $STREAM_CROPS --start task1 --schedule steps --buffer-size $MEMORY $HOW $*"
}

continual() {                    # the folder names state network, memory and IPC
    for SEED in $SEEDS; do
        P=$STUDY/seed$SEED
        for LEARNER in $LEARNERS; do
            for MEMORY in $MEMORIES; do
                RUNS=$OUT/continual${CHOOSE:+-crops$STREAM_CROPS}/$LEARNER-memory$MEMORY
                for LABELS in $REAL_LABELS; do
                    for SHARE in $REAL_PARTS; do
                        learn "$LABELS" --stream real --steps "$((EPOCH_STEPS / SHARE))" --output-dir "$RUNS/real"
                    done
                done
                for IPC in $STREAM_IPCS; do
                    for LABELS in $STREAM_LABELS; do
                        for SHARE in $SMALL_PARTS; do
                            arms "$STREAM_ARMS" | while read -r ARM WAY; do
                                case $ARM in random) STREAM=random WHERE= ;; distilled) STREAM=distilled WHERE= ;;
                                *) STREAM=distilled WHERE=-$ARM ;; esac
                                learn "$LABELS" --stream "$STREAM" "--$STREAM" "$(images_of "$WAY")" \
                                    --steps "$((EPOCH_STEPS / SHARE))" --output-dir "$RUNS/ipc$IPC$WHERE"
                            done
                        done
                    done
                done
                echo
            done
        done
    done
}

parts teachers "sets students continual"
