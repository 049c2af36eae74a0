#!/bin/sh
# The data of docs/results/gsm8k-qwen2.5-coder-0.5b, stage by stage; every stage goes on where it was stopped.
#
#   sh scripts/study_gsm8k.sh compare harvest rivals
#
# Names of the hub are the default; set MODEL, EMBEDDER, TRAIN and TEST to local folders and files where it is out of
# reach, MORE to further options of dps (for a rehearsal: MORE="--benchmark.limit 8"), STEPS to num_mh_steps.
set -e
OUTPUT=${OUTPUT:-runs/gsm8k-qwen2.5-coder-0.5b}
MODEL=${MODEL:-Qwen/Qwen2.5-Coder-0.5B-Instruct}
EMBEDDER=${EMBEDDER:-sentence-transformers/all-MiniLM-L6-v2}
STEPS=${STEPS:-5}
CONFIGS=$(cd "$(dirname "$0")/../configs" && pwd)
SCRIPTS=$(cd "$(dirname "$0")" && pwd)

sampled() { # command, configuration, split, questions, file of the questions, output
    python3 -m dps "$1" --config "$CONFIGS/$1/$2" --model.name "$MODEL" --features.embedder "$EMBEDDER" \
        --benchmark.split "$3" --benchmark.limit "$4" ${5:+--benchmark.path "$5"} --sampler.num_mh_steps "$STEPS" \
        --output "$6" $MORE
}

for stage in "$@"; do
    case $stage in
    compare) # which num_mh_steps: 100 training questions
        python3 "$SCRIPTS/compare_samplers.py" --model "$MODEL" --benchmark gsm8k --split train ${TRAIN:+--path "$TRAIN"} \
            --limit "${COMPARE:-100}" --output "$OUTPUT/compare" \
            --variants ${VARIANTS:-lowtemp steps-2 steps-5 steps-10 entropy-5 tries2-2 tries2-5}
        ;;
    harvest) # power sampling with features
        sampled harvest gsm8k_qwen_0.5b.yaml test 700 "$TEST" "$OUTPUT/test"
        sampled harvest gsm8k_qwen_0.5b.yaml train 1500 "$TRAIN" "$OUTPUT/train"
        ;;
    rivals) # plain and low-temperature samples of the same questions
        sampled evaluate gsm8k_qwen_0.5b.yaml test 700 "$TEST" "$OUTPUT/rivals-test"
        sampled evaluate gsm8k_qwen_0.5b.yaml train 1500 "$TRAIN" "$OUTPUT/rivals-train"
        ;;
    *)
        echo "Unknown stage $stage: expected compare, harvest or rivals." >&2
        exit 2
        ;;
    esac
done
