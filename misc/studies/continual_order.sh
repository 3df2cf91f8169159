#!/bin/sh
# The order of methods on CIFAR-10 in Buzzega et al. (2020, arXiv 2004.07211): fine-tuning, A-GEM, ER and DER++ with 200 images,
# ER with 500; ResNet-18 with the CIFAR stem, 5 tasks of 2 classes in their natural order, SGD at a constant rate, real images.
# DATA is a folder with train/<class>/ and test/<class>/. Theirs are 50 epochs of batches of 32 + 32 and all test images
# (EPOCHS=50 BATCH=32 TEST_PER_CLASS=1000 FLAGS=). The default: one epoch of batches of 16 + 16 in bfloat16 (twice as many
# steps as with 32), 200 test images of each class. It takes two cores an hour and a quarter without DER++ (not timed).
# The same command resumes. Then:
# python -m misc.report collect runs/study-order misc/results/continual_order_cifar10.jsonl --kind continual
# python -m misc.report tables
set -eu
cd "$(dirname "$0")/../.."
DATA=${DATA:?expected a folder with train/<class>/ and test/<class>/}
STUDY=${STUDY:-runs/study-order}
. misc/studies/common.sh

SEEDS=${SEEDS:-0} EPOCHS=${EPOCHS:-1} BATCH=${BATCH:-16} TEST_PER_CLASS=${TEST_PER_CLASS:-200} FLAGS=${FLAGS---bf16}

FEWER=$STUDY/data$TEST_PER_CLASS
fewer_tests "$DATA" "$FEWER" "$TEST_PER_CLASS"

runs() {                         # buffer images, flags that name the methods ...
    buffer=$1; shift
    for SEED in $SEEDS; do
        echo "continual.train_continual --dataset folder --data_dir $FEWER --size 32 --stream real --seed $SEED" \
            "--arch resnet18 --stem cifar --tasks 5 --class-order natural --epochs $EPOCHS --batch-size $BATCH" \
            "--replay-batch-size $BATCH --buffer-size $buffer --optimizer sgd --lr 0.1 --momentum 0 --weight-decay 0" \
            "--lr-schedule constant --bn-momentum 0.1 --flip 0.5 $FLAGS --output-dir $STUDY/buffer$buffer $*"
        echo
    done
}

commands() { runs 500 --method er; for method in er derpp agem finetune; do runs 200 --method "$method"; done; }

batch commands
