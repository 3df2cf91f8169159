# shellcheck shell=sh disable=SC2034
# Your own images with Stable Diffusion v1.5. Needs a GPU. No published figure to compare with: compare with METHOD=random, and
# try several STRENGTHs first where the images are no photographs.
RUN=${RUN:-runs/folder}
DATA=${DATA:-data/folder}                # train/<class>/* and val/<class>/* or test/<class>/*; a folder's name is its prompt
CHECKPOINT=${CHECKPOINT:-stable-diffusion-v1-5/stable-diffusion-v1-5}

# 1 prototypes, encoded at the 512 pixels that Stable Diffusion v1.5 was trained on
IPC=${IPC:-10} SIZE=${SIZE:-512} KMEANS=${KMEANS:-minibatch} ENCODE_BATCH=${ENCODE_BATCH:-32}
# 2 images, as in the paper: 35 of 50 steps at strength 0.7, guidance 8, saved at the size of a teacher's views
STRENGTH=${STRENGTH:-0.7} GUIDANCE=${GUIDANCE:-8} STEPS=${STEPS:-50} IMAGE_SIZE=${IMAGE_SIZE:-224}
# 3 teacher (the usual ImageNet recipe: 90 epochs, SGD from 0.1) and soft labels
INPUT_SIZE=${INPUT_SIZE:-$IMAGE_SIZE} MIN_SCALE=${MIN_SCALE:-0.08} FLIP=${FLIP:-0.5} TEACHER_BATCH=${TEACHER_BATCH:-256}
TEACHER_ARCH=${TEACHER_ARCH:-resnet18} TEACHER_STEM=${TEACHER_STEM:-imagenet} TEACHER_EPOCHS=${TEACHER_EPOCHS:-90}
TEACHER_RECIPE=${TEACHER_RECIPE:---min-scale-crops $MIN_SCALE --optimizer sgd --weight-decay 1e-4 --lr-schedule cosine --bf16}
# 4 students; the protocol's batch of 1,024 would be too few steps for few images
MODEL=${MODEL:-resnet18} STEM=${STEM:-imagenet} EPOCHS=${EPOCHS:-300} BATCH=${BATCH:-50}
PROTOCOL=${PROTOCOL-d4m} BF16=${BF16-1}
INIT=${INIT-$CHECKPOINT}                 # of train_ldm.sh: Stable Diffusion fitted to these images
