# shellcheck shell=sh disable=SC2034  # the stage scripts use these variables
# Sourced by every stage script after its `cd` to the root: finds Python, reads scripts/settings/$DATASET.sh, and names the
# folder that each stage writes and the next one reads. The environment overrides every value (stages 1 and 2 write below RUN;
# PROTOTYPES and DISTILLED say what the later stages read), arguments go to the Python command, and
# LAUNCH="accelerate launch" starts a stage on several GPUs.

# a relative path means the folder where the user stands
value='' here=$OLDPWD/
[ "$OLDPWD" != "$PWD" ] || here=
for name in RUN DATA VAL PROMPTS PROTOTYPES DISTILLED RANDOM_REAL TEACHER SOFT_LABELS STUDENT LDM OUTPUT_DIR COMPARISON \
    CHECKPOINT INIT VAL_LABELS; do
    eval "value=\${$name-}"
    case $value in '' | /*) continue ;; esac
    # a checkpoint that is no folder here is a name on the hub
    case $name in CHECKPOINT | INIT) [ -e "$here$value" ] || continue ;; esac
    eval "$name=\$here\$value"
done

# the active Python if it has all that requirements.txt asks for, else the one of set_up.sh
if [ -x .venv/bin/python ] && ! python scripts/check_requirements.py >/dev/null 2>&1; then
    export PATH="$PWD/.venv/bin:$PATH"
fi
command -v python >/dev/null || python() { python3 "$@"; }

DATASET=${DATASET:-digits} BATCH_ASKED=${BATCH:-}      # by the environment: PROTOCOL=rded has batches of its own
if [ ! -f "scripts/settings/$DATASET.sh" ]; then
    echo "DATASET: expected one of $(cd scripts/settings && echo *.sh | sed 's/\.sh//g'), found $DATASET" >&2; exit 2
fi
# shellcheck source=scripts/settings/digits.sh
. "scripts/settings/$DATASET.sh"

# the same for most data sets; theirs are above
LAUNCH=${LAUNCH:-python}
SEEDS=${SEEDS:-${SEED:-0 1 2}}           # of cross_architecture.sh and continual.sh
SEED=${SEED:-0}                          # of every other stage
WORKERS=${WORKERS:-8}                    # threads of each process that read and write images
NEGATIVE_PROMPT=${NEGATIVE_PROMPT-cartoon, anime, painting} DENOISE_BATCH=${DENOISE_BATCH:-16} LABEL_BATCH=${LABEL_BATCH:-256}
# (with PROTOCOL=d4m labels are made in batches of BATCH instead)
TASKS=${TASKS:-5} SCHEDULE=${SCHEDULE:-epochs} TASK_EPOCHS=${TASK_EPOCHS:-2}    # of continual.sh: epochs, or TASK_STEPS, a task
BUFFER_SIZE=${BUFFER_SIZE:-200} BATCH_SIZE=${BATCH_SIZE:-32} REPLAY_BATCH_SIZE=${REPLAY_BATCH_SIZE:-32}
# of train_ldm.sh, for Stable Diffusion: 16 images a step in 8 parts of 2; a resume point every half hour, since it is large
UNET_STEPS=${UNET_STEPS:-4000} LDM_BATCH=${LDM_BATCH:-16}
LDM_RECIPE=${LDM_RECIPE---gradient_accumulation_steps 8 --gradient_checkpointing --save_seconds 1800}
IMAGE_SIZE=${IMAGE_SIZE:-}               # pixels of the saved images; empty: as made, at most 224
METHOD=${METHOD:-d4m}                    # or prototype, noise, random, herding, kcenter, sre2l (sre2l.sh), mtt (mtt.sh)
SRE2L_STEPS=${SRE2L_STEPS:-1000} SRE2L_BATCH=${SRE2L_BATCH:-100}        # of sre2l.sh: optimiser steps, images at once
EXPERTS=${EXPERTS:-10} EXPERT_EPOCHS=${EXPERT_EPOCHS:-20} MTT_ITERATIONS=${MTT_ITERATIONS:-1000}       # of mtt.sh
KM_EXPAND=${KM_EXPAND:-}                 # mini-batches of k-means: km_expand x ipc latents; empty: at least 1,024
WEIGHTS=${WEIGHTS-}                      # torchvision's weights of TEACHER_ARCH; empty: the teacher in the folder TEACHER
TEMPERATURE=${TEMPERATURE:-}             # of soft labels; empty: the protocol's (stage 5: continual.sh --temperature)
CLUSTER_WEIGHTS=${CLUSTER_WEIGHTS-}      # 1: weight images with hard labels by the size of their cluster
[ "$CLUSTER_WEIGHTS" != 0 ] || CLUSTER_WEIGHTS=
[ "$BF16" != 0 ] || BF16=                # 1: students compute in bfloat16 (--bf16)
LORA_RANK=${LORA_RANK:-}                 # of train_ldm.sh with INIT; empty: the whole UNet
LABELS=${LABELS:-soft}                   # of students: soft or hard
KEEP_TOPK=${KEEP_TOPK:-}                 # logits stored of each view; empty: all
KEEP_EPOCHS=${KEEP_EPOCHS:-1}            # share of the epochs that is stored and used in turns (LPLD, arXiv 2410.15919)
PROMPTS=${PROMPTS:-}                     # file with one prompt a line, in class order; empty: the names of the classes
VAL_LABELS=${VAL_LABELS:-}               # file with the classes of test images that lie in one folder (flag --val_labels)
VALIDATION=${VALIDATION:-}               # training images held out and tested on, not the test images; needs a RUN of its own
VAL=${VAL:-}                             # folder of test images for students; empty: the test images of the data set

# Where each stage writes. Images of another strength, guidance, k-means or prototype than usual have names of their own.
float() { LC_ALL=C awk -v x="$1" 'BEGIN { CONVFMT = "%.15g"; x += 0; print x (x == int(x) ? ".0" : "") }'; }
how() { echo "s$(float "$STRENGTH")_g$(float "$GUIDANCE")_kmexpand${KM_EXPAND:-1}"; }
# shellcheck source=/dev/null
usual=$(unset STRENGTH GUIDANCE KM_EXPAND; . "scripts/settings/$DATASET.sh"; how)
PROTOTYPES=${PROTOTYPES:-$RUN/prototypes/$DATASET-ipc$IPC-kmexpand${KM_EXPAND:-1}} PROTOTYPES=${PROTOTYPES%/}
from=$IPC                                # prototypes per class
case ${PROTOTYPES##*/} in *-ipc*-kmexpand*) from=${PROTOTYPES##*-ipc} from=${from%%-*} ;; esac
case $PROTOTYPES in
*-medoid-lof) kind=_medoid_lof ;; *-medoid) kind=_medoid ;; *-member-lof) kind=_member_lof ;; *-member) kind=_member ;;
*-lof) kind=_lof ;; *-random) kind=_random ;; *) kind= ;;
esac
made=$(how)$kind images=distilled
[ "$made" = "$usual" ] || images=${images}_$made
[ "$from" = "$IPC" ] || images=${images}_of$from
case $METHOD in
d4m) folder=${DATASET}_ipc${from}_${IPC}_$made images=$images-ipc$IPC ;;
prototype) folder=${DATASET}_prototype_ipc$IPC$kind images=prototype$kind-ipc$IPC ;;
*) folder=${DATASET}_${METHOD}_ipc$IPC images=$METHOD-ipc$IPC ;;
esac
[ -z "${DISTILLED+given}" ] || images=$(basename "${DISTILLED:-real}")
case $TEACHER_ARCH in resnet18) by= ;; *) by=-$TEACHER_ARCH ;; esac
DISTILLED=${DISTILLED-$RUN/distilled/$folder}   # empty: students learn from all real training images
TEACHER=${TEACHER:-$RUN/teacher$by}
SOFT_LABELS=${SOFT_LABELS:-$RUN/soft-labels/$images$by}
STUDENT=${STUDENT:-$RUN/students/$images$by-$MODEL${PROTOCOL:+-$PROTOCOL}-$LABELS-seed$SEED}
RANDOM_REAL=${RANDOM_REAL-}              # for continual.sh; empty: drawn by the seed, as many images as distilled
OUTPUT_DIR=${OUTPUT_DIR:-$RUN/continual-ipc$IPC}        # of continual.sh
COMPARISON=${COMPARISON-$OUTPUT_DIR/comparison}         # empty: no comparison
LDM=${LDM:-$RUN/$DATASET-ldm}            # of train_ldm.sh
