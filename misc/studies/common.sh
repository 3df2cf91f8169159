# shellcheck shell=sh disable=SC2153,SC2154  # IPC, SEED, P and others are the study's
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

parts() {                        # functions of PARTS that run commands themselves, those that print them for `batch`
    for PART in $PARTS; do
        started=$(date +%s)
        case " $1 : $2 " in
        *" $PART "*:*) "$PART" ;;
        *:*" $PART "*) batch "$PART" ;;
        *) echo "PARTS: expected some of $1 $2, found $PART" >&2; exit 2 ;;
        esac
        printf '{"stage": "%s", "seconds": %d}\n' "$PART" "$(($(date +%s) - started))" >> "$STUDY/stages.jsonl"
    done
}

# Images of the data set DATA_NAME by its flags MAKE, in the folder P: IPC a class, by GUIDANCE and STEPS, with the seed SEED
GUIDANCE=${GUIDANCE:-2} STEPS=${STEPS:-20}
END=g$(LC_ALL=C awk "BEGIN{printf \"%.1f\", $GUIDANCE}")_kmexpand1

prototypes() {                   # flags ...: the command for prototypes, of all of PER_CLASS, which share the encoding
    echo "distillation.gen_prototype $MAKE --ipc ${PER_CLASS:-$IPC} --seed $SEED --save_prototype_path $P/prototypes $*"
}

prototypes_of_arms() {           # flags ...
    prototypes "$@"
    case " $ARMS ${STREAM_ARMS-} " in *medoid*) prototypes "$@" --prototype medoid ;; esac
    case " $ARMS ${STREAM_ARMS-} " in *member*) prototypes "$@" --prototype member ;; esac
    case " $ARMS ${STREAM_ARMS-} " in *" autoencoder "*) prototypes "$@" --prototype random ;; esac
}

strength() { case $1 in s0.*) echo "${1#s}" ;; *) echo "$STRENGTH" ;; esac; }

images() {                       # way (s0.3: D4M images of this strength; distilled: of STRENGTH), flags ...: the command
    start="--prototype_path $P/prototypes/$DATA_NAME-ipc$IPC-kmexpand1" way=$1
    shift
    case $way in
    distilled | s0.*) how="$start --strength $(strength "$way")" ;;
    medoid | member | lof) how="$start-$way --strength $STRENGTH" ;;
    mode) how="$start --guidance mode --mode_scale 0.1 --stop_t 10" ;;
    prototype) how="$start --method prototype" ;;
    decoded-medoid | decoded-member) how="$start-${way#decoded-} --method prototype" ;;
    autoencoder) how="$start-random --method prototype" ;;      # random real images, encoded and decoded
    noise | random | herding | kcenter) how="--method $way" ;;
    *) echo "ARMS: expected names such as distilled, s0.3, medoid, prototype, noise or random, found $way" >&2; exit 2 ;;
    esac
    echo "distillation.gen_syn_image $MAKE --ipc $IPC --guidance_scale $GUIDANCE --num_inference_steps $STEPS" \
        "--negative_prompt '' --seed $SEED --save_init_image_path $P/distilled $how $*"
}

images_of() {                    # way: the folder of its images
    made=$P/distilled/${DATA_NAME}_ipc${IPC}_$IPC
    case $1 in
    distilled | s0.*) echo "${made}_s$(strength "$1")_$END" ;;
    medoid | member | lof) echo "${made}_s${STRENGTH}_${END}_$1" ;;
    mode) echo "${made}_mode0.1-10_$END" ;;
    decoded-medoid | decoded-member) echo "$P/distilled/${DATA_NAME}_prototype_ipc${IPC}_${1#decoded-}" ;;
    autoencoder) echo "$P/distilled/${DATA_NAME}_prototype_ipc${IPC}_random" ;;
    *) echo "$P/distilled/${DATA_NAME}_$1_ipc$IPC" ;;
    esac
}

soft_labels() {                  # folder, images, epochs, flags ...: the command for labels of views VIEWS by TEACHER
    folder=$1 from=${2:+--data $2} last=$3
    shift 3
    echo "matching.generate_soft_label $from --teacher $TEACHER --epochs $last $VIEWS --mix-type cutmix --use-fp16" \
        "--fkd-path $folder $*"
}

digits_teacher() { DATASET=digits RUN=$STUDY SEED=0 TEACHER_EPOCHS=10 sh matching/train_teacher.sh; }

digits_sets() {                  # of each of SEEDS and START_SEEDS: distilled and random real images, 10 per class
    MAKE="--dataset digits"
    # shellcheck disable=SC2086
    for SEED in $(printf '%s\n' $SEEDS ${START_SEEDS-} | sort -nu); do
        P=$STUDY/seed$SEED
        prototypes --kmeans full
        images s0.3
        images random
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
