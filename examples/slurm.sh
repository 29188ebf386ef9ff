#!/bin/bash
# A study on a SLURM cluster: each task of the array is one seed, in a clone of its own on the node's disk.
#
#     sbatch examples/slurm.sh empo-table1
#     python -m attune study collect empo-table1 --scale paper     # at any time: what is done so far
#
# Submit from the root of a clone whose .venv is made (`make setup`), on a file system that the nodes share. Experiments
# come back into that clone, their data into its DVC cache. The hub's token, where a model asks for one, is read from the
# environment that sbatch hands on.
#SBATCH --job-name=attune
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --output=attune-%A_%a.log
set -euo pipefail

study=${1:?usage: sbatch examples/slurm.sh STUDY}
seeds=(13 14 15 16)
seed=${seeds[${SLURM_ARRAY_TASK_ID:?is run by sbatch}]}
shared=$SLURM_SUBMIT_DIR
work=$(mktemp -d "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/attune.XXXXXX")
trap 'rm -rf "$work"' EXIT

export PATH="$shared/.venv/bin:$PATH"
git clone --quiet "$shared" "$work"
cd "$work"
# One cache for all: a stage that another task has run is taken from it.
dvc cache dir --local "$shared/.dvc/cache"

# No override but of an axis: `collect` looks for experiments with the other overrides of the study alone.
python -m attune study run "$study" --scale paper "seed=$seed"
dvc exp push --no-cache --rev HEAD origin
