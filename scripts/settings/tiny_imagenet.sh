# shellcheck shell=sh disable=SC2034
# Tiny-ImageNet (200 classes, 100,000 images of 64 pixels) with Stable Diffusion v1.5. Needs a GPU. Not run here as it stands.
RUN=${RUN:-runs/tiny_imagenet}
DATA=${DATA:-data/tiny-imagenet-200}     # as distributed, or with val/<wnid>/*.JPEG
CHECKPOINT=${CHECKPOINT:-stable-diffusion-v1-5/stable-diffusion-v1-5}

# 1 prototypes, encoded at the 512 pixels that Stable Diffusion v1.5 was trained on
IPC=${IPC:-50} SIZE=${SIZE:-512} KMEANS=${KMEANS:-minibatch} ENCODE_BATCH=${ENCODE_BATCH:-32}
# 2 images, as in the paper: 35 of 50 steps at strength 0.7, guidance 8, saved at the data set's size
STRENGTH=${STRENGTH:-0.7} GUIDANCE=${GUIDANCE:-8} STEPS=${STEPS:-50} IMAGE_SIZE=${IMAGE_SIZE:-64}
# 3 teacher (ResNet-18 for small images; 0.2 at batch 256 is 0.1 at 128; padding grows with the image: 8 of 64 pixels) and soft
# labels. D4M has 61.9 % for a ResNet-18 on the full set
INPUT_SIZE=${INPUT_SIZE:-64} MIN_SCALE=${MIN_SCALE:-0.08} FLIP=${FLIP:-0.5} TEACHER_BATCH=${TEACHER_BATCH:-256}
TEACHER_ARCH=${TEACHER_ARCH:-resnet18} TEACHER_STEM=${TEACHER_STEM:-cifar} TEACHER_EPOCHS=${TEACHER_EPOCHS:-60}
TEACHER_RECIPE=${TEACHER_RECIPE:---crop pad --pad 8 --cutout 16 --optimizer sgd -lr 0.2 --weight-decay 5e-4 \
--lr-schedule triangle --label-smoothing 0.1 --bf16}
# 4 students. D4M reports for ResNet-18 / 50 / 101 46.2 / 51.8 / 51.0 % at IPC 50 and 51.4 / 54.8 / 55.3 % at IPC 100 (61.9 /
# 62.0 / 62.3 % on all real images). The protocol's batch of 1,024 would be too few steps for so few images
MODEL=${MODEL:-resnet18} STEM=${STEM:-cifar} EPOCHS=${EPOCHS:-300} BATCH=${BATCH:-100}
PROTOCOL=${PROTOCOL-d4m} BF16=${BF16-1}
INIT=${INIT-$CHECKPOINT}                 # of train_ldm.sh: Stable Diffusion fitted to these images
