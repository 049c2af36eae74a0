#!/bin/sh
# Every policy on the embedded model: the data of docs/results/embedded-policies and docs/results/controllers.
#
#   sh scripts/study_embedded.sh harvest rivals crossval replay
#
# Every stage goes on where it was stopped. LIMIT questions (5,000), WORKERS sampling processes (2), ROWS rows of each,
# MORE further options of dps for the stages that sample, TRAINING for those that train.
set -e
export OUTPUT=${OUTPUT:-runs/embedded}
LIMIT=${LIMIT:-5000}
ROOT=$(cd "$(dirname "$0")/.." && pwd)

sampled() { # command, configuration, output, further options
    command=$1 config=$2 output=$3
    shift 3
    python3 -m dps "$command" --config "$ROOT/configs/$config" --output "$output" --benchmark.split train \
        --benchmark.limit "$LIMIT" --model.dtype float32 --compute.workers "${WORKERS:-2}" \
        --compute.rows "${ROWS:-256}" "$@" $MORE
}

for stage in "$@"; do
    case $stage in
    harvest)
        sampled harvest harvest/arithmetic.yaml "$OUTPUT/harvest"
        ;;
    rivals) # 64 plain and 64 low-temperature samples of the same questions
        sampled evaluate evaluate/arithmetic.yaml "$OUTPUT/rivals" --policies '[plain, lowtemp]'
        ;;
    crossval) # three controllers, both labels, both feature sets; JOBS of them at a time
        mkdir -p "$OUTPUT/crossval"
        for label in no_gain correct; do
            for set in published extended; do
                printf '%s\n' "gbdt $label $set" "mlp_h $label $set" "mlp_hq $label $set"
            done
        done | xargs -P "${JOBS:-2}" -L 1 sh "$0" one
        ;;
    one) # of them
        name=$(echo "$2" | tr _ -)-$3-$4
        python3 -m dps crossval --config "$ROOT/configs/$2.yaml" --output "$OUTPUT/crossval/$name" \
            --data.init_args.store "$OUTPUT/harvest" --data.init_args.label "$3" --data.init_args.feature_set "$4" \
            $TRAINING >"$OUTPUT/crossval/$name.log" 2>&1 || { tail -n 3 "$OUTPUT/crossval/$name.log" >&2; exit 255; }
        exit
        ;;
    replay)
        controllers=
        for set in published extended; do
            for name in gbdt mlp-h mlp-hq; do
                controllers="$controllers$name-$set: $OUTPUT/crossval/$name-no_gain-$set, "
            done
        done
        python3 -m dps replay "$OUTPUT/harvest" --rivals "[$OUTPUT/rivals]" --controllers "{${controllers%, }}" \
            --output "$OUTPUT/replay"
        ;;
    *)
        echo "Unknown stage $stage: expected harvest, rivals, crossval or replay." >&2
        exit 2
        ;;
    esac
done
