#!/bin/bash
# Submit a harvest as an array of shards x seeds, and a merge of each seed's shards that waits for it.
#
#   scripts/slurm/submit.sh CONFIG OUTPUT SHARDS "SEEDS" [options of dps harvest]
#   scripts/slurm/submit.sh configs/harvest/gsm8k_qwen_0.5b.yaml /shared/harvest 8 "0 1 2" --model.name /shared/model
#
# SBATCH_OPTIONS are given to sbatch, for instance SBATCH_OPTIONS="--partition=gpu --comment='two words'". The merged
# stores are OUTPUT/seed-<seed>/merged. Running it again submits what is missing once more: finished shards end at once.
set -eu
refuse() {
    echo "$0: $1" >&2
    exit 2
}
# A word as a shell reads it back, sh too: what printf %q writes is for bash alone.
quoted() {
    local word=${1//\'/\'\\\'\'}
    printf "'%s'" "$word"
}
# A whole number without leading zeros, which bash would take for octal; nothing for anything else.
number() {
    [[ $1 =~ ^0*([0-9]{1,10})$ ]] && printf '%d' "$((10#${BASH_REMATCH[1]}))"
}
if [ $# -lt 4 ]; then
    refuse "expected CONFIG OUTPUT SHARDS \"SEEDS\" [options of dps harvest], got $# arguments."
fi
export DPS_CONFIG=$1 DPS_OUTPUT=$2
shards=$(number "$3") || shards=0
if [ "$shards" -lt 1 ]; then
    refuse "expected SHARDS to be a number of at least 1, got $3."
fi
seeds=()
set -f # a seed * is no file name
for word in $4; do
    seed=$(number "$word") || refuse "expected SEEDS to be numbers with spaces between them, got $word."
    if [ "$seed" -gt 4294967295 ]; then
        refuse "expected seeds of at most 4294967295, got $word."
    fi
    case " ${seeds[*]-} " in *" $seed "*) refuse "expected each seed once, got $word again." ;; esac
    seeds+=("$seed")
done
set +f
if [ ${#seeds[@]} -eq 0 ]; then
    refuse 'expected at least one seed in SEEDS, got none: "0 1 2", for instance.'
fi
if [ -z "$DPS_OUTPUT" ]; then
    refuse "expected OUTPUT to be a folder, got an empty name."
fi
if ! [ -f "$DPS_CONFIG" ]; then
    refuse "expected the configuration of a harvest, but there is no $DPS_CONFIG."
fi
shift 4
export DPS_SHARDS=$shards DPS_SEEDS="${seeds[*]}" DPS_OPTIONS=""
for option in "$@"; do
    DPS_OPTIONS+="$(quoted "$option") "
done
# Words of SBATCH_OPTIONS may be quoted, as on a command line.
mapfile -t -d '' sbatch_options < <(xargs -r printf '%s\0' <<<"${SBATCH_OPTIONS:-}")
here=$(cd "$(dirname "$0")" && pwd)
last=$((shards * ${#seeds[@]} - 1))
job=$(sbatch --parsable --export=ALL --array="0-$last" "${sbatch_options[@]}" "$here/harvest.sbatch")
job=${job%%;*}
echo "array $job: $shards shards x ${#seeds[@]} seeds"
for seed in "${seeds[@]}"; do
    parts=""
    for ((shard = 1; shard <= shards; shard++)); do
        parts+="$(quoted "$DPS_OUTPUT/seed-$seed/shard-$shard") "
    done
    merge=$(sbatch --parsable --export=ALL --dependency="afterok:$job" --job-name=dps-merge \
        --wrap "python3 -m dps store merge $parts--output $(quoted "$DPS_OUTPUT/seed-$seed/merged")")
    echo "merge ${merge%%;*}: $DPS_OUTPUT/seed-$seed/merged"
done
