#!/bin/bash
# Submit a harvest as an array of shards x seeds, and a merge of each seed's shards that waits for it.
#
#   scripts/slurm/submit.sh CONFIG OUTPUT SHARDS "SEEDS" [options of dps harvest]
#   scripts/slurm/submit.sh configs/harvest/gsm8k_qwen_0.5b.yaml /shared/harvest 8 "0 1 2" --model.name /shared/model
#
# SBATCH_OPTIONS are given to sbatch, for instance SBATCH_OPTIONS="--partition=gpu --time=02:00:00". The merged stores are
# OUTPUT/seed-<seed>/merged. Running it again submits what is missing once more: finished shards end at once.
set -eu
if [ $# -lt 4 ]; then
    echo "usage: $0 CONFIG OUTPUT SHARDS \"SEEDS\" [options of dps harvest]" >&2
    exit 2
fi
export DPS_CONFIG=$1 DPS_OUTPUT=$2 DPS_SHARDS=$3 DPS_SEEDS=$4
shift 4
export DPS_OPTIONS="$*"
here=$(cd "$(dirname "$0")" && pwd)
if ! [ "$DPS_SHARDS" -ge 1 ] 2>/dev/null; then
    echo "$0: expected SHARDS to be a number of at least 1, got $DPS_SHARDS." >&2
    exit 2
fi
if ! [ -f "$DPS_CONFIG" ]; then
    echo "$0: expected the configuration of a harvest, but there is no $DPS_CONFIG." >&2
    exit 2
fi
read -r -a seeds <<<"$DPS_SEEDS"
last=$((DPS_SHARDS * ${#seeds[@]} - 1))
# shellcheck disable=SC2086
job=$(sbatch --parsable --export=ALL --array="0-$last" ${SBATCH_OPTIONS:-} "$here/harvest.sbatch")
job=${job%%;*}
echo "array $job: $DPS_SHARDS shards x ${#seeds[@]} seeds"
for seed in "${seeds[@]}"; do
    parts=()
    for ((shard = 1; shard <= DPS_SHARDS; shard++)); do
        parts+=("$DPS_OUTPUT/seed-$seed/shard-$shard")
    done
    merge=$(sbatch --parsable --export=ALL --dependency="afterok:$job" --job-name=dps-merge \
        --wrap "python3 -m dps store merge ${parts[*]} --output $DPS_OUTPUT/seed-$seed/merged")
    echo "merge ${merge%%;*}: $DPS_OUTPUT/seed-$seed/merged"
done
