# shellcheck shell=sh disable=SC2034
# Fashion-MNIST (60,000 training images of 28 pixels, padded to 32) with a diffusion model of this repository. Needs no GPU.
# 30 MB are downloaded where DATA has none of its files and Debian's package dataset-fashion-mnist is not installed.
RUN=${RUN:-runs/fashion_mnist}
DATA=${DATA:-data}                       # the four idx files, plain or gzipped, here or as torchvision stores them
WORKERS=${WORKERS:-4}
CHECKPOINT=${CHECKPOINT:-distillation/checkpoints/fashion-ldm}

# 1 prototypes, encoded at the checkpoint's 32 pixels
IPC=${IPC:-10} SIZE=${SIZE:-} KMEANS=${KMEANS:-full} ENCODE_BATCH=${ENCODE_BATCH:-256}
# 2 images. The strength was chosen on held-out images, one seed (misc/fashion_mnist.md)
STRENGTH=${STRENGTH:-0.7} GUIDANCE=${GUIDANCE:-2} STEPS=${STEPS:-20} NEGATIVE_PROMPT=${NEGATIVE_PROMPT-}
DENOISE_BATCH=${DENOISE_BATCH:-50}
# 3 teacher (93.3 % on 5,000 held-out training images after 30 minutes of one core) and soft labels. Most garments are
# nearly symmetric: flips, and crops of at least a third
INPUT_SIZE=${INPUT_SIZE:-32} MIN_SCALE=${MIN_SCALE:-0.35} FLIP=${FLIP:-0.5} TEACHER_BATCH=${TEACHER_BATCH:-128}
TEACHER_ARCH=${TEACHER_ARCH:-convnet_d3_w64_bn} TEACHER_STEM=${TEACHER_STEM:-imagenet} TEACHER_EPOCHS=${TEACHER_EPOCHS:-10}
TEACHER_RECIPE=${TEACHER_RECIPE:---crop pad --optimizer sgd -lr 0.1 --weight-decay 5e-4 --lr-schedule triangle}
# 4 students
MODEL=${MODEL:-resnet18} STEM=${STEM:-imagenet} EPOCHS=${EPOCHS:-200} BATCH=${BATCH:-50}
PROTOCOL=${PROTOCOL-d4m} BF16=${BF16-1}
# 5 continual, one epoch per task
TASK_EPOCHS=${TASK_EPOCHS:-1}
# diffusion model from scratch, as the shipped one (with VALIDATION=5000), in four hours of one core. Eight channels of 16 x 16
# latents and hardly any KL; four channels would do as well (misc/fashion_mnist.md)
INIT=${INIT-} VAE_STEPS=${VAE_STEPS:-1500} VAE_CHANNELS=${VAE_CHANNELS:-24 48} UNET_CHANNELS=${UNET_CHANNELS:-48 96}
[ -n "$INIT" ] || LDM_BATCH=${LDM_BATCH:-64} LDM_RECIPE=${LDM_RECIPE---latent_channels 8 --kl_weight 1e-5 --save_seconds 120}
