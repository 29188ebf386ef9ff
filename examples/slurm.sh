#!/bin/bash
# A study on a SLURM cluster: each array task runs one seed, in its own clone on the node's disk.
#
#     sbatch examples/slurm.sh empo-table1
#     python -m attune study collect empo-table1 --scale paper     # results so far
#
# Submit from the root of a clone with .venv (`make setup`) on a shared file system. Experiments return to that clone, data
# to its DVC cache. A gated model's token (HF_TOKEN) comes from the environment that sbatch passes on.
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
# One shared cache: stages that another task has run are reused.
dvc cache dir --local "$shared/.dvc/cache"

# Override only an axis of the study (here seed): `collect` looks for experiments with its other overrides.
python -m attune study run "$study" --scale paper "seed=$seed"
dvc exp push --no-cache --rev HEAD origin
