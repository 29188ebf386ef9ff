#!/bin/bash
# A study on a SLURM cluster: each array task runs one seed, in its own clone on the node's disk.
#
#     sbatch examples/slurm.sh empo-table1
#     python -m attune study collect empo-table1 --scale paper     # results so far
#
# Submit from the root of a clone with .venv (`make setup`) on a shared file system. Experiments return to that clone, data
# to its DVC cache, checkpoints to its .checkpoints: a task that is preempted, or submitted again, continues there. A gated
# model's token (HF_TOKEN) comes from the environment that sbatch passes on. Nodes without a network: download the models
# on the login node first (HF_HOME on the shared file system), and export HF_HUB_OFFLINE=1.
#SBATCH --job-name=attune
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --output=attune-%A_%a.log
set -euo pipefail

study=${1:?usage: sbatch examples/slurm.sh STUDY}
seeds=(13 14 15 16)
seed=${seeds[${SLURM_ARRAY_TASK_ID:?is run by sbatch}]}
shared=$SLURM_SUBMIT_DIR
work=$(mktemp -d "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/attune.XXXXXX")
trap 'rm -rf "$work"' EXIT

export PATH="$shared/.venv/bin:$PATH"
export ATTUNE_CHECKPOINTS="$shared/.checkpoints/$study-$seed"
git clone --quiet "$shared" "$work"
cd "$work"
# One shared cache: stages that another task has run are reused. Outs are links into it, where the file systems allow it.
dvc cache dir --local "$shared/.dvc/cache"
dvc config --local cache.type reflink,hardlink,symlink
dvc config --local cache.shared group

# 300 seconds before the time limit, and at a preemption: the stage that runs leaves a checkpoint and ends.
stop() {
    for process in $(pgrep -u "$(id -u)" -f '^[^ ]*python[^ ]* -m stages\.'); do
        case $(readlink "/proc/$process/cwd") in "$work"*) kill -TERM "$process" ;; esac
    done
}
trap stop TERM

# Override only an axis of the study (here seed): `collect` looks for experiments with its other overrides.
python -m attune study run "$study" --scale paper "seed=$seed" &
# A signal ends the first wait and not the study.
wait $! || wait $!
dvc exp push --no-cache --rev HEAD origin
