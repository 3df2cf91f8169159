#!/bin/sh
# shellcheck disable=SC2030,SC2031  # a subshell changes STUDY and SEED for itself
# CIFAR-10 from the prior to the tables: a latent diffusion model of our own, a teacher, images made in every way of ARMS, soft
# labels, students, continual learning. Each seed has its own images. DATA has train/<class>/* and test/<class>/* (PNG).
# SCALE=full is for one GPU like an H200 and has not been run. SCALE=small has a prior of 50 minutes of one core, a ConvNet
# teacher of 8 minutes, 10 images per class and short schedules; IPCS=50 EPOCHS=40 adds 50 per class. PRIOR names a checkpoint
# and TEACHER a teacher that exist; without them both are trained, side by side. PARTS runs a part; the same command resumes.
# Then:
# python -m misc.report collect runs/study-cifar10 misc/results/cifar10.jsonl   (small: ...-small, cifar10_small.jsonl)
# python -m misc.report collect runs/study-cifar10/autoencoders misc/results/cifar10_autoencoders.jsonl --kind ldm student
# python -m misc.report tables
set -eu
cd "$(dirname "$0")/../.."

SCALE=${SCALE:-full} DATA=${DATA:-data/cifar10}
ARMS=${ARMS:-distilled random herding autoencoder noise}     # more ways: s0.3 (that strength), medoid, prototype, kcenter
DESIGNS=${DESIGNS:-4x16x16 16x8x8 4x8x8} DESIGN_STEPS=${DESIGN_STEPS:-1500}     # of autoencoders: channels and sides of latents
NETWORK=${NETWORK:-resnet18}     # of the streams
SEEDS=${SEEDS:-0 1 2}            # of images, students and streams
STRENGTH=${STRENGTH:-0.5} GUIDANCE=${GUIDANCE:-2} METHODS=${METHODS:-finetune joint er agem derpp}
CLAIMED=${CLAIMED:-er agem task_arithmetic}     # with soft labels too, and on real images with no more steps than on few
case $SCALE in
full)
    STUDY=${STUDY:-runs/study-cifar10} IPCS=${IPCS:-10 50 500} EPOCHS=${EPOCHS:-300} STEM=${STEM:-cifar} STEPS=${STEPS:-50}
    PARTS=${PARTS:-models sets judge students continual}     # and autoencoders: students of their designs, no prior needed
    KINDS=${KINDS:-resnet18-soft resnet18-hard resnet50-soft resnet50-hard convnet_d3_w128-soft convnet_d3_w128-hard}
    TEACHER_EPOCHS=${TEACHER_EPOCHS:-60} BUFFER=${BUFFER:-500} REAL_STEPS=${REAL_STEPS:-3125} SMALL_STEPS=${SMALL_STEPS:-1200}
    CONTINUAL_IPC=${CONTINUAL_IPC:-500} START_STEPS=${START_STEPS:-400} TEST_PER_CLASS=${TEST_PER_CLASS:-all}
    JUDGED=${JUDGED:-2000} JOBS=${JOBS:-4} OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} ;;
small)
    STUDY=${STUDY:-runs/study-cifar10-small} IPCS=${IPCS:-10} EPOCHS=${EPOCHS:-100} STEM=${STEM:-imagenet} STEPS=${STEPS:-20}
    PARTS=${PARTS:-models sets judge students}
    KINDS=${KINDS:-convnet_d3_w128-hard resnet18-hard resnet18-soft}
    TEACHER_EPOCHS=${TEACHER_EPOCHS:-5} BUFFER=${BUFFER:-200} REAL_STEPS=${REAL_STEPS:-48} SMALL_STEPS=${SMALL_STEPS:-18}
    CONTINUAL_IPC=${CONTINUAL_IPC:-10} START_STEPS=${START_STEPS:-100} TEST_PER_CLASS=${TEST_PER_CLASS:-200}
    JUDGED=${JUDGED:-500}
    TEACHER_ARCH=${TEACHER_ARCH:-convnet_d3_w128_bn} TEACHER_BATCH=${TEACHER_BATCH:-128}
    TEACHER_RECIPE=${TEACHER_RECIPE:---crop pad --optimizer sgd -lr 0.1 --weight-decay 5e-4 --lr-schedule triangle --bf16}
    VAE_CHANNELS=${VAE_CHANNELS:-24 48} VAE_STEPS=${VAE_STEPS:-1000} UNET_CHANNELS=${UNET_CHANNELS:-64 128 256}
    UNET_STEPS=${UNET_STEPS:-800} LDM_BATCH=${LDM_BATCH:-64}
    LDM_RECIPE=${LDM_RECIPE:---prediction_type v_prediction --kl_weight 1e-5 --unet_lr 6e-4 --bf16 --save_seconds 120}
    export TEACHER_ARCH TEACHER_BATCH TEACHER_RECIPE VAE_CHANNELS VAE_STEPS UNET_CHANNELS UNET_STEPS LDM_BATCH LDM_RECIPE ;;
*) echo "SCALE: expected full or small, found $SCALE" >&2; exit 2 ;;
esac
. misc/studies/common.sh
PRIOR=${PRIOR:-$STUDY/cifar10-ldm} TEACHER=${TEACHER:-$STUDY/teacher}
DATA_NAME=folder SOURCE="--dataset folder --data_dir $DATA" VIEWS="--input-size 32 --min-scale-crops 0.2"
MAKE="$SOURCE --size 32 --diffusion_checkpoints_path $PRIOR"

models() {                       # with the settings of cifar10.sh
    export DATASET=cifar10 DATA TEACHER TEACHER_EPOCHS TEACHER_STEM="$STEM" LDM="$PRIOR"
    { [ -f "$TEACHER/manifest.json" ] || sh matching/train_teacher.sh --dataset folder; } & teacher=$!
    [ -d "$PRIOR/unet" ] || sh distillation/train_ldm.sh --dataset folder
    wait "$teacher"
}

sets() {
    for SEED in $SEEDS; do
        P=$STUDY/seed$SEED PER_CLASS=$IPCS
        prototypes_of_arms --kmeans full
        for IPC in $IPCS; do
            for ARM in $ARMS; do images "$ARM" --image_size 32; done
        done
        echo
    done
}

judge() {
    P=$STUDY/seed${SEEDS%% *} IPC=${IPCS##* }
    echo "misc.judge $SOURCE --diffusion_checkpoints_path $PRIOR --teacher $TEACHER --images $JUDGED --batch_size 250" \
        "--guidance_scale $GUIDANCE --num_inference_steps $STEPS --distilled $(images_of distilled) --output $STUDY/judge.json"
}

student() {                      # network-labels, arm
    case $1 in
    *-soft) FROM="--fkd-path $P/soft-labels/$2-ipc$IPC"
        soft_labels "$P/soft-labels/$2-ipc$IPC" "$(images_of "$2")" "$EPOCHS" --fkd-seed "$((42 + SEED))" ;;
    *) FROM=$VIEWS ;;
    esac
    echo "validate.train_FKD $SOURCE --protocol d4m --train-dir $(images_of "$2") --model ${1%-*} --stem $STEM" \
        "--labels ${1##*-} --batch-size 50 --gradient-accumulation-steps 1 --epochs $EPOCHS --bf16 --seed $SEED" \
        "--output-dir $P/students/$1-$2-ipc$IPC $FROM"
}

students() {
    for IPC in $IPCS; do
        for SEED in $SEEDS; do
            P=$STUDY/seed$SEED
            for ARM in $ARMS; do
                for KIND in $KINDS; do student "$KIND" "$ARM"; done
            done
            echo
        done
    done
}

autoencoders() (                 # students of random real images, as they are and encoded and decoded; 5,000 images held out
    A=$STUDY/autoencoders SOURCE="$SOURCE --validation ${VALIDATION:-5000}"
    for DESIGN in real $DESIGNS; do
        PRIOR=$A/$DESIGN ARM=autoencoder PER_CLASS=$IPCS
        MAKE="$SOURCE --size 32 --diffusion_checkpoints_path $PRIOR"
        case $DESIGN in real) ARM=random ;; *x16) LEVELS="24 48" ;; *) LEVELS="24 48 64" ;; esac
        [ "$DESIGN" = real ] || echo "distillation.train_ldm $SOURCE --size 32 --vae_channels $LEVELS --kl_weight 1e-5" \
            "--latent_channels ${DESIGN%%x*} --vae_steps $DESIGN_STEPS --unet_steps 1 --unet_channels 16 16 --text_width 16" \
            "--bf16 --output_dir $PRIOR"
        for SEED in $SEEDS; do
            P=$A/seed$SEED/$DESIGN
            [ "$DESIGN" = real ] || prototypes --kmeans full --prototype random
            for IPC in $IPCS; do
                images "$ARM" --image_size 32
                for KIND in $KINDS; do
                    case $KIND in *-hard) student "$KIND" "$ARM" ;; esac
                done
            done
        done
        echo
    done
)

runs() {                         # output folder, flags that name methods and streams ...
    output=$1; shift
    echo "continual.train_continual --dataset folder --data_dir $STREAMS --seed $SEED --arch $NETWORK --stem $STEM --size 32" \
        "--tasks 5 --bf16 --flip 0.5 --batch-size 32 --replay-batch-size 32 --buffer-size $BUFFER --start-steps $START_STEPS" \
        "--distilled $(images_of distilled) --random $(images_of random) --output-dir $STUDY/$output $*"
}

streams() {                      # Task Arithmetic from a start that was trained on the distilled set, the same for all streams
    IPC=$CONTINUAL_IPC
    for SEED in $SEEDS; do
        P=$STUDY/seed$SEED LENGTHS="--stream real random distilled --steps $REAL_STEPS $SMALL_STEPS $SMALL_STEPS"
        runs continual --method "$METHODS" "$LENGTHS"
        echo
        runs continual --method task_arithmetic "$LENGTHS"
        runs continual --method "$CLAIMED" --stream random distilled --steps "$SMALL_STEPS" --labels soft --teacher "$TEACHER"
        runs same-steps --method "$CLAIMED" --stream real --steps "$SMALL_STEPS"
        echo
    done
}

continual() {
    STREAMS=$DATA
    if [ "$TEST_PER_CLASS" != all ]; then
        STREAMS=$STUDY/streams$TEST_PER_CLASS
        fewer_tests "$DATA" "$STREAMS" "$TEST_PER_CLASS"
    fi
    batch streams
}

parts "models continual" "sets judge students autoencoders"
