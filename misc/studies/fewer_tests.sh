# Sourced by the studies that test often: fewer_tests FROM TO COUNT makes TO an image folder with the training images of FROM
# (linked) and COUNT test images of each class, the first by name.

fewer_tests() {
    [ ! -d "$2/test" ] || return 0
    rm -rf "$2/part"
    mkdir -p "$2/part"
    ln -sfn "$(cd "$1/train" && pwd)" "$2/train"
    for class in "$1"/test/*/; do
        kept="$2/part/$(basename "$class")"
        mkdir "$kept"
        find "$class" -type f | sort | head -n "$3" | xargs -I{} cp {} "$kept/"
    done
    mv "$2/part" "$2/test"
}
