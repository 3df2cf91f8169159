# shellcheck shell=sh disable=SC2034
# Digits: the 1,797 images of scikit-learn at 32 pixels, with the checkpoint of this repository. Needs no GPU and no download.
RUN=${RUN:-runs/digits}                  # folder of the whole run
DATA=${DATA:-data}                       # not read: the images come with scikit-learn
WORKERS=${WORKERS:-4}                    # threads that read and write images
CHECKPOINT=${CHECKPOINT:-distillation/checkpoints/digits-ldm}

# 1 prototypes, encoded at the checkpoint's 32 pixels. Classes have 135 latents: k-means proper costs nothing
IPC=${IPC:-10} SIZE=${SIZE:-} KMEANS=${KMEANS:-full} ENCODE_BATCH=${ENCODE_BATCH:-64}
# 2 images. The best strength of the sweep in misc/digits.md (paper: 0.7); this small model is sharp enough at guidance 2
STRENGTH=${STRENGTH:-0.3} GUIDANCE=${GUIDANCE:-2}
STEPS=${STEPS:-20}                       # of the whole schedule; STRENGTH of them run
NEGATIVE_PROMPT=${NEGATIVE_PROMPT-}      # the paper's has kinds of pictures that this model does not know
DENOISE_BATCH=${DENOISE_BATCH:-50}
# 3 teacher and soft labels. Digits are not symmetric: no flips, and crops keep most of the image
INPUT_SIZE=${INPUT_SIZE:-32} MIN_SCALE=${MIN_SCALE:-0.6} FLIP=${FLIP:-0}
TEACHER_ARCH=${TEACHER_ARCH:-resnet18} TEACHER_STEM=${TEACHER_STEM:-imagenet} TEACHER_EPOCHS=${TEACHER_EPOCHS:-8}
TEACHER_BATCH=${TEACHER_BATCH:-64} TEACHER_RECIPE=${TEACHER_RECIPE:---min-scale-crops $MIN_SCALE}
# 4 students. Without a protocol: AdamW, cosine to zero, temperature 20. Hard labels win or tie with weights by cluster size at
# every IPC in misc/digits.md; soft labels gain nothing by them
MODEL=${MODEL:-resnet18} STEM=${STEM:-imagenet} EPOCHS=${EPOCHS:-60} BATCH=${BATCH:-50}
PROTOCOL=${PROTOCOL-} TEMPERATURE=${TEMPERATURE:-20} CLUSTER_WEIGHTS=${CLUSTER_WEIGHTS-1} BF16=${BF16-}
# 5 continual. Steps per task in the order of STREAMS: the small sets take a third. The buffer has ten images a class. Replayed
# images are three times as many as new ones: with as many ER forgets three times as much
SEEDS=${SEEDS:-${SEED:-0}} TASKS=${TASKS:-5} SCHEDULE=${SCHEDULE:-steps} TASK_STEPS=${TASK_STEPS:-42 14 14}
BUFFER_SIZE=${BUFFER_SIZE:-100} BATCH_SIZE=${BATCH_SIZE:-16} REPLAY_BATCH_SIZE=${REPLAY_BATCH_SIZE:-48}
RANDOM_REAL=${RANDOM_REAL-$RUN/distilled/digits_random_ipc$IPC}         # METHOD=random sh distillation/gen_syn_image.sh
COMPARISON=${COMPARISON-}
# diffusion model from scratch, like the one shipped: the autoencoder is within 1 % of the pixel range; 142 passes for the UNet
INIT=${INIT-} VAE_STEPS=${VAE_STEPS:-800} VAE_CHANNELS=${VAE_CHANNELS:-16 32 32} UNET_CHANNELS=${UNET_CHANNELS:-64 96}
[ -n "$INIT" ] || UNET_STEPS=${UNET_STEPS:-3000} LDM_BATCH=${LDM_BATCH:-64} LDM_RECIPE=${LDM_RECIPE-}
