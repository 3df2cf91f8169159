# shellcheck shell=sh disable=SC2034
# ImageNet-1K, or some of its wnids (ImageNette, ImageNet-100), in the paper's setting with Stable Diffusion v1.5. Needs a GPU.
# Not run here as it stands.
RUN=${RUN:-runs/imagenet}
DATA=${DATA:-data/imagenet}              # train/<wnid>/* and val/<wnid>/*; a wnid's prompt is its class name
CHECKPOINT=${CHECKPOINT:-stable-diffusion-v1-5/stable-diffusion-v1-5}

# 1 prototypes, encoded at the 512 pixels that Stable Diffusion v1.5 was trained on
IPC=${IPC:-10} SIZE=${SIZE:-512} KMEANS=${KMEANS:-minibatch} ENCODE_BATCH=${ENCODE_BATCH:-32}
# 2 images, as in the paper: 35 of 50 steps at strength 0.7, guidance 8, saved at 224 pixels
STRENGTH=${STRENGTH:-0.7} GUIDANCE=${GUIDANCE:-8} STEPS=${STEPS:-50}
# 3 teacher and soft labels. The teacher is torchvision's ResNet-18, unless TEACHER names another. For some of the wnids its
# outputs are selected by wnid. With WEIGHTS= train_teacher.sh trains one, if the images fit into memory (90 epochs, SGD)
if [ -n "${TEACHER:-}" ]; then WEIGHTS=${WEIGHTS-}; else WEIGHTS=${WEIGHTS-IMAGENET1K_V1}; fi
INPUT_SIZE=${INPUT_SIZE:-224} MIN_SCALE=${MIN_SCALE:-0.08} FLIP=${FLIP:-0.5} TEACHER_BATCH=${TEACHER_BATCH:-256}
TEACHER_ARCH=${TEACHER_ARCH:-resnet18} TEACHER_STEM=${TEACHER_STEM:-imagenet} TEACHER_EPOCHS=${TEACHER_EPOCHS:-90}
TEACHER_RECIPE=${TEACHER_RECIPE:---min-scale-crops $MIN_SCALE --optimizer sgd --weight-decay 1e-4 --lr-schedule cosine --bf16}
# 4 students. D4M reports for ResNet-18 / 50 / 101 27.9 / 33.5 / 34.2 % at IPC 10 and 55.2 / 62.4 / 63.4 % at IPC 50; users who
# ran the released code report 18.9 % at IPC 10. PROTOCOL=rded asks the teacher for every batch. BATCH is the protocol's
MODEL=${MODEL:-resnet18} STEM=${STEM:-imagenet} EPOCHS=${EPOCHS:-300} BATCH=${BATCH:-} SEEDS=${SEEDS:-${SEED:-0}}
PROTOCOL=${PROTOCOL-d4m} BF16=${BF16-1}
INIT=${INIT-$CHECKPOINT}                 # of train_ldm.sh: Stable Diffusion fitted to these images
