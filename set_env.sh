# shellcheck shell=bash disable=SC2034
# Settings of infer.sh, which reads this file. A variable of the environment comes first.

# The machines of a launch, the first one leads. This version runs on one machine.
IPs=(127.0.0.1)

# A directory of checkpoints: --model NAME takes NAME from it where it is there.
MODELS_PATH=${MODELS_PATH:-}

# Where logs, the configuration and the report of each launch go.
RESULTS_PATH=${RESULTS_PATH:-$root/res}
