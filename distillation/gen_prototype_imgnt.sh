#!/bin/sh
DATASET=imagenet exec sh "$(dirname "$0")/gen_prototype.sh" "$@"
