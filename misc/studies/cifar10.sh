#!/bin/sh
# shellcheck disable=SC2030,SC2031  # a subshell changes STUDY and SEED for itself
# CIFAR-10 from the prior to the tables: a latent diffusion model of our own, prototypes and images, a teacher and its soft
# labels, students, continual learning; every set beside as many random real images. DATA has train/<class>/* and test/<class>/*
# (PNG or JPEG). SCALE=full is for one GPU like an H200 and has not been run; SCALE=small takes two cores an hour: a smaller
# prior, a ResNet-18 teacher with ImageNet's stem, 10 images per class, short schedules (in each row's result), and streams
# tested on 200 images of each class. PRIOR names a checkpoint and TEACHER a teacher that exist; without them both are trained,
# side by side. PARTS runs a part; the same command resumes. Then:
# python -m misc.report collect runs/study-cifar10 misc/results/cifar10.jsonl   (small: ...-small, cifar10_small.jsonl)
# python -m misc.report collect runs/study-cifar10/autoencoders misc/results/cifar10_autoencoders.jsonl --kind ldm student
# python -m misc.report tables
set -eu
cd "$(dirname "$0")/../.."

SCALE=${SCALE:-full} DATA=${DATA:-${CIFAR10_JPEG:-data/cifar10}}
PARTS=${PARTS:-models sets judge students continual}     # and arms: other ways to make images; autoencoders: their designs
ARMS=${ARMS:-s0.3 s0.7 prototype noise medoid autoencoder}
DESIGNS=${DESIGNS:-4x16x16 16x8x8 4x8x8} DESIGN_STEPS=${DESIGN_STEPS:-1500}     # of autoencoders: channels and sides of latents
NETWORK=${NETWORK:-resnet18}     # of the streams
SEEDS=${SEEDS:-0 1 2}            # of students and streams; one distilled and one random set serve all
STRENGTH=${STRENGTH:-0.5} GUIDANCE=${GUIDANCE:-2} METHODS=${METHODS:-finetune joint er agem derpp}
CLAIMED=${CLAIMED:-er agem task_arithmetic}     # with soft labels too, and on real images with no more steps than on few
case $SCALE in
full)
    STUDY=${STUDY:-runs/study-cifar10} IPCS=${IPCS:-10 50 500} MODELS=${MODELS:-resnet18 resnet50 convnet_d3_w128}
    EPOCHS=${EPOCHS:-300} STEM=${STEM:-cifar} TEACHER_EPOCHS=${TEACHER_EPOCHS:-60} BUFFER=${BUFFER:-500}
    REAL_STEPS=${REAL_STEPS:-3125} SMALL_STEPS=${SMALL_STEPS:-1200} CONTINUAL_IPC=${CONTINUAL_IPC:-500}
    START_STEPS=${START_STEPS:-400} TEST_PER_CLASS=${TEST_PER_CLASS:-all} JUDGED=${JUDGED:-2000}
    JUDGE_STEPS=${JUDGE_STEPS:-50} JOBS=${JOBS:-4} OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} ;;
small)
    STUDY=${STUDY:-runs/study-cifar10-small} IPCS=${IPCS:-10} MODELS=${MODELS:-resnet18 convnet_d3_w128}
    EPOCHS=${EPOCHS:-100} STEM=${STEM:-imagenet} TEACHER_EPOCHS=${TEACHER_EPOCHS:-10} BUFFER=${BUFFER:-200}
    REAL_STEPS=${REAL_STEPS:-48} SMALL_STEPS=${SMALL_STEPS:-18} CONTINUAL_IPC=${CONTINUAL_IPC:-10}
    START_STEPS=${START_STEPS:-100} TEST_PER_CLASS=${TEST_PER_CLASS:-200} JUDGED=${JUDGED:-500}
    export VAE_CHANNELS="${VAE_CHANNELS:-24 48 64}" UNET_CHANNELS="${UNET_CHANNELS:-64 128}" LDM_BATCH="${LDM_BATCH:-64}"
    export VAE_STEPS="${VAE_STEPS:-400}" UNET_STEPS="${UNET_STEPS:-900}" JUDGE_STEPS="${JUDGE_STEPS:-20}" ;;
*) echo "SCALE: expected full or small, found $SCALE" >&2; exit 2 ;;
esac
. misc/studies/common.sh
PRIOR=${PRIOR:-$STUDY/cifar10-ldm} TEACHER=${TEACHER:-$STUDY/teacher}
SOURCE="--dataset folder --data_dir $DATA" VIEWS="--input-size 32 --min-scale-crops 0.2"

centroids() { echo "$STUDY/prototypes/folder-ipc$1-kmexpand1"; }
one_place() { awk "BEGIN{printf \"%.1f\", $1}"; }
distilled() { echo "$STUDY/distilled/folder_ipc$1_$1_s${STRENGTH}_g$(one_place "$GUIDANCE")_kmexpand1"; }
random() { echo "$STUDY/distilled/folder_random_ipc$1"; }

models() {                       # with the settings of cifar10.sh
    export DATASET=cifar10 DATA TEACHER TEACHER_EPOCHS TEACHER_STEM="$STEM" LDM="$PRIOR"
    { [ -f "$TEACHER/manifest.json" ] || sh matching/train_teacher.sh --dataset folder; } & teacher=$!
    [ -d "$PRIOR/unet" ] || sh distillation/train_ldm.sh --dataset folder
    wait "$teacher"
}

prototypes() {                   # flags ...
    echo "distillation.gen_prototype $SOURCE --diffusion_checkpoints_path $PRIOR --size 32 --ipc $IPC --kmeans full" \
        "--save_prototype_path $STUDY/prototypes $*"
}

images() {                       # prototypes, flags ...
    start=$1; shift
    echo "distillation.gen_syn_image $SOURCE --diffusion_checkpoints_path $PRIOR --image_size 32 --ipc $IPC" \
        "--prototype_path $start --guidance_scale $GUIDANCE --num_inference_steps 50 --negative_prompt ''" \
        "--save_init_image_path $STUDY/distilled $*"
}

real_images() {                  # flags ...
    echo "distillation.gen_syn_image $SOURCE --method random --image_size 32 --ipc $IPC" \
        "--save_init_image_path $STUDY/distilled $*"
}

sets() {
    for IPC in $IPCS; do
        prototypes
        images "$(centroids "$IPC")" --strength "$STRENGTH"
        images "$(centroids "$IPC")" --method prototype
        real_images
        echo
    done
}

judge() {
    echo "misc.judge $SOURCE --diffusion_checkpoints_path $PRIOR --teacher $TEACHER --images $JUDGED --batch_size 250" \
        "--guidance_scale $GUIDANCE --num_inference_steps $JUDGE_STEPS --distilled $(distilled "${IPCS##* }")" \
        "--output $STUDY/judge.json"
}

soft_labels() {                  # arm, its images
    echo "matching.generate_soft_label --data $2 --teacher $TEACHER --epochs $EPOCHS --fkd-seed 42 $VIEWS --mix-type cutmix" \
        "--use-fp16 --fkd-path $STUDY/soft-labels/$1-ipc$IPC"
}

student() {                      # labels, arm, its images
    case $1 in soft) FROM="--fkd-path $STUDY/soft-labels/$2-ipc$IPC" ;; *) FROM="--labels hard $VIEWS" ;; esac
    echo "validate.train_FKD $SOURCE --protocol d4m --train-dir $3 --model $MODEL --stem $STEM --batch-size 50" \
        "--gradient-accumulation-steps 1 --epochs $EPOCHS --bf16 --seed $SEED" \
        "--output-dir $STUDY/students/$MODEL-$2-ipc$IPC-$1-seed$SEED $FROM"
}

students() {
    for IPC in $IPCS; do
        for ARM in distilled random; do
            soft_labels "$ARM" "$($ARM "$IPC")"
            for MODEL in $MODELS; do
                for SEED in $SEEDS; do student soft "$ARM" "$($ARM "$IPC")"; done
                for SEED in $SEEDS; do student hard "$ARM" "$($ARM "$IPC")"; done
            done
            echo
        done
    done
}

arms() {                         # other ways to make the images, for the first network with soft labels
    IPC=${IPCS%% *} MODEL=${MODELS%% *}
    for ARM in $ARMS; do
        START=$(centroids "$IPC")
        case $ARM in
        s0.*) HOW="--strength ${ARM#s}" NAME=folder_ipc${IPC}_${IPC}_${ARM}_g$(one_place "$GUIDANCE")_kmexpand1 ;;
        medoid) START=$START-medoid HOW="--strength $STRENGTH" NAME=$(basename "$(distilled "$IPC")")_medoid
            prototypes --prototype medoid ;;
        autoencoder) START=$START-random HOW="--method prototype" NAME=folder_prototype_ipc${IPC}_random
            prototypes --prototype random ;;     # random real images, encoded and decoded
        prototype | noise) HOW="--method $ARM" NAME=folder_${ARM}_ipc$IPC ;;
        *) echo "ARMS: expected s0.3 and the like, prototype, noise, medoid or autoencoder, found $ARM" >&2; exit 2 ;;
        esac
        images "$START" "$HOW"
        soft_labels "$ARM" "$STUDY/distilled/$NAME"
        for SEED in $SEEDS; do student soft "$ARM" "$STUDY/distilled/$NAME"; done
        echo
    done
}

autoencoders() (                 # students of random real images, as they are and encoded and decoded; 5,000 images held out
    A=$STUDY/autoencoders SOURCE="$SOURCE --validation ${VALIDATION:-5000}"
    for DESIGN in real $DESIGNS; do
        PRIOR=$A/$DESIGN
        case $DESIGN in *x16) LEVELS="24 48" ;; *) LEVELS="24 48 64" ;; esac
        [ "$DESIGN" = real ] || echo "distillation.train_ldm $SOURCE --size 32 --vae_channels $LEVELS --kl_weight 1e-5" \
            "--latent_channels ${DESIGN%%x*} --vae_steps $DESIGN_STEPS --unet_steps 1 --unet_channels 16 16 --text_width 16" \
            "--bf16 --output_dir $PRIOR"
        for IPC in $IPCS; do
            for SEED in $SEEDS; do
                STUDY=$A/seed$SEED/$DESIGN
                if [ "$DESIGN" = real ]; then
                    real_images --seed "$SEED"
                    SET=$(random "$IPC")
                else
                    prototypes --prototype random --seed "$SEED"
                    images "$(centroids "$IPC")-random" --method prototype --seed "$SEED"
                    SET=$STUDY/distilled/folder_prototype_ipc${IPC}_random
                fi
                for MODEL in $MODELS; do student hard "$DESIGN" "$SET"; done
            done
        done
        echo
    done
)

runs() {                         # output folder, flags that name methods and streams ...
    output=$1; shift
    echo "continual.train_continual --dataset folder --data_dir $STREAMS --seed $SEED --arch $NETWORK --stem $STEM --size 32" \
        "--tasks 5 --bf16 --flip 0.5 --batch-size 32 --replay-batch-size 32 --buffer-size $BUFFER --start-steps $START_STEPS" \
        "--distilled $(distilled "$CONTINUAL_IPC") --random $(random "$CONTINUAL_IPC") --output-dir $STUDY/$output $*"
}

continual() {                    # Task Arithmetic from a start that was trained on the distilled set, the same for all streams
    for SEED in $SEEDS; do
        STEPS="--stream real random distilled --steps $REAL_STEPS $SMALL_STEPS $SMALL_STEPS"
        runs continual --method "$METHODS" "$STEPS"
        echo
        runs continual --method task_arithmetic "$STEPS"
        runs continual --method "$CLAIMED" --stream random distilled --steps "$SMALL_STEPS" --labels soft --teacher "$TEACHER"
        runs same-steps --method "$CLAIMED" --stream real --steps "$SMALL_STEPS"
        echo
    done
}

for PART in $PARTS; do
    started=$(date +%s)
    case $PART in
    models) models ;;
    sets | judge | students | arms | autoencoders) batch "$PART" ;;
    continual) STREAMS=$DATA
        [ "$TEST_PER_CLASS" = all ] || { STREAMS=$STUDY/streams; fewer_tests "$DATA" "$STREAMS" "$TEST_PER_CLASS"; }
        batch continual ;;
    *) echo "PARTS: expected models, sets, judge, students, continual, arms or autoencoders, found $PART" >&2; exit 2 ;;
    esac
    printf '{"stage": "%s", "seconds": %d}\n' "$PART" "$(($(date +%s) - started))" >> "$STUDY/stages.jsonl"
done
