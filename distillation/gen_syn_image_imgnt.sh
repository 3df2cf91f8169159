#!/bin/sh
DATASET=imagenet exec sh "$(dirname "$0")/gen_syn_image.sh" "$@"
