# shellcheck shell=sh disable=SC2154,SC2119,SC2120  # IPC, SEED and P are the study's
# Sourced by the studies from the root, after STUDY is set: set-up, and what several studies need.
. scripts/set_up.sh

JOBS=${JOBS:-2}                  # single-threaded processes at once
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
mkdir -p "$STUDY"
if [ "$(uname)" = Linux ] && python -m misc.studies.warm "$STUDY/.python" $$; then
    PATH="$STUDY/.python:$PATH"  # commands fork from one Python that has loaded the libraries
fi

batch() {                        # function: runs the commands it prints; blocks between empty lines run side by side
    "$1" > "$STUDY/$1.txt"
    python -m misc.studies.batch "$STUDY/$1.txt" --jobs "$JOBS"
}

digits_teacher() { DATASET=digits RUN=$STUDY SEED=0 TEACHER_EPOCHS=10 sh matching/train_teacher.sh; }

digits_prototypes() {            # flags ...: the command for IPC prototypes per class of digits in the folder P
    echo "distillation.gen_prototype --dataset digits --ipc $IPC --kmeans full --seed $SEED" \
        "--save_prototype_path $P/prototypes $*"
}

digits_images() {                # flags ...: the command for IPC images
    echo "distillation.gen_syn_image --dataset digits --ipc $IPC --guidance_scale 2 --num_inference_steps 20" \
        "--negative_prompt '' --seed $SEED --save_init_image_path $P/distilled $*"
}

digits_sets() {                  # distilled and random real images, 10 per class
    IPC=10
    digits_prototypes
    digits_images --prototype_path "$P/prototypes/digits-ipc10-kmexpand1" --strength 0.3
    digits_images --method random
}

seeds_sets() {                   # of each of SEEDS and START_SEEDS
    # shellcheck disable=SC2086,SC2153
    for SEED in $(printf '%s\n' $SEEDS ${START_SEEDS-} | sort -nu); do
        P=$STUDY/seed$SEED
        digits_sets
        echo
    done
}

fewer_tests() {                  # from, to, count: links the training images, copies the first test images of each class
    [ ! -d "$2/test" ] || return 0
    rm -rf "$2/part"
    mkdir -p "$2/part"
    ln -sfn "$(cd "$1/train" && pwd)" "$2/train"
    for class in "$1"/test/*/; do
        kept="$2/part/$(basename "$class")"
        mkdir "$kept"
        find -L "$class" -type f | sort | head -n "$3" | while IFS= read -r image; do cp "$image" "$kept/"; done
    done
    mv "$2/part" "$2/test"
}
