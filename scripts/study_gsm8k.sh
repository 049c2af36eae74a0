#!/bin/sh
# The data of docs/results/gsm8k-qwen2.5-coder-0.5b, stage by stage; every stage goes on where it was stopped.
#
#   sh scripts/study_gsm8k.sh compare harvest-train harvest-test rivals controllers replay live latency reference humaneval math500
#
# Names of the hub are the default; set MODEL, EMBEDDER, TRAIN, TEST, HUMANEVAL and MATH500 to local folders and files
# where it is out of reach, WORKERS to the number of GPUs, MORE to further options of dps (for a rehearsal:
# MORE="--benchmark.limit 8"), STEPS to num_mh_steps. Stages that sample need a GPU each; CUDA_VISIBLE_DEVICES chooses.
set -e
export OUTPUT=${OUTPUT:-runs/gsm8k-qwen2.5-coder-0.5b}
MODEL=${MODEL:-Qwen/Qwen2.5-Coder-0.5B-Instruct}
EMBEDDER=${EMBEDDER:-sentence-transformers/all-MiniLM-L6-v2}
STEPS=${STEPS:-5}
CONTROLLERS=${CONTROLLERS:-gbdt mlp_h mlp_hq}
LIVE=${LIVE-gbdt-published mlp-h-published mlp-hq-published gbdt-extended mlp-h-extended mlp-hq-extended}
IN_RUN=${IN_RUN-gbdt,extended,no_gain,2 gbdt,extended,solvable,2 mlp_hq,extended,solvable,2}
CONFIGS=$(cd "$(dirname "$0")/../configs" && pwd)
SCRIPTS=$(cd "$(dirname "$0")" && pwd)

dps() {
    python3 -m dps "$@"
}

harvest() { # split, limit, file of the questions, output
    dps harvest --config "$CONFIGS/harvest/gsm8k_qwen_0.5b.yaml" --model.name "$MODEL" \
        --features.embedder "$EMBEDDER" --benchmark.split "$1" --benchmark.limit "$2" ${3:+--benchmark.path "$3"} \
        --sampler.num_mh_steps "$STEPS" --compute.workers "${WORKERS:-1}" --checkpoint_blocks '[2, 4]' \
        --output "$4" $MORE
}

evaluate() { # benchmark, file of the questions, output, further options
    name=$1 path=$2 output=$3
    shift 3
    dps evaluate --config "$CONFIGS/evaluate/$name.yaml" --config "$CONFIGS/models/qwen2.5-coder-0.5b-instruct.yaml" \
        --model.name "$MODEL" --features.embedder "$EMBEDDER" ${path:+--benchmark.path "$path"} \
        --sampler.num_mh_steps "$STEPS" --compute.workers "${WORKERS:-1}" --output "$output" "$@" $MORE
}

shipped() { # names -> options that name their folders
    for name in "$@"; do
        printf -- '--controllers.%s=%s ' "$name" "$OUTPUT/controllers/$name"
    done
}

listed() { # words -> a YAML list
    printf '[%s]' "$(echo "$@" | sed 's/ /, /g')"
}

for stage in "$@"; do
    case $stage in
    compare) # which num_mh_steps: 100 training questions
        python3 "$SCRIPTS/compare_samplers.py" --model "$MODEL" --benchmark gsm8k --split train ${TRAIN:+--path "$TRAIN"} \
            --limit "${COMPARE:-100}" --output "$OUTPUT/compare" \
            --variants ${VARIANTS:-lowtemp steps-2 steps-5 steps-10 entropy-5 tries2-2 tries2-5}
        ;;
    harvest-train) # power sampling with features
        harvest train "${TRAIN_LIMIT:-3000}" "$TRAIN" "$OUTPUT/train"
        ;;
    harvest-test)
        harvest test "${TEST_LIMIT:-700}" "$TEST" "$OUTPUT/test"
        ;;
    rivals) # plain and low-temperature samples of the test questions
        evaluate gsm8k "$TEST" "$OUTPUT/rivals-test" --benchmark.limit "${TEST_LIMIT:-700}" \
            --policies '[plain, lowtemp]' --plain_max_k "${PLAIN_MAX_K:-64}"
        ;;
    controllers) # on the training questions, both feature sets, and some for block 2; JOBS of them at a time
        mkdir -p "$OUTPUT/controllers"
        {
            for set in published extended; do
                for config in $CONTROLLERS; do
                    echo "$config $set no_gain end"
                done
            done
            for line in $IN_RUN; do
                echo "$line" | tr , ' '
            done
        } | xargs -P "${JOBS:-2}" -L 1 sh "$0" controller
        ;;
    controller) # one of them: out-of-fold predictions, a controller of all questions, its folder
        name=$(echo "$2" | tr _ -)-$3
        options="--config $CONFIGS/$2.yaml --data.init_args.feature_set $3 --data.init_args.store $OUTPUT/train"
        chosen="--margin 0.01"
        if [ "$5" != end ]; then
            name=$name-$4-block-$5 chosen=
            options="$options --data.init_args.label $4 --data.init_args.block $5"
        fi
        {
            dps crossval $options --output "$OUTPUT/crossval/$name" $TRAINING &&
                dps fit $options --trainer.default_root_dir "$OUTPUT/fit/$name" $TRAINING &&
                rm -rf "$OUTPUT/controllers/$name" &&
                dps ship "$OUTPUT/fit/$name" --output "$OUTPUT/controllers/$name" \
                    --crossval "$OUTPUT/crossval/$name" $chosen
        } >"$OUTPUT/controllers/$name.log" 2>&1 || { tail -n 3 "$OUTPUT/controllers/$name.log" >&2; exit 255; }
        exit
        ;;
    replay) # every policy over the stored trajectories: of the training questions out of fold, of the test questions
        trained=
        for name in $LIVE; do
            trained="$trained$name: $OUTPUT/controllers/$name, "
        done
        dps replay "$OUTPUT/train" --controllers "{$(echo "${trained%, }" | sed "s#/controllers/#/crossval/#g")}" \
            --output "$OUTPUT/replay-train"
        dps replay "$OUTPUT/test" --controllers "{${trained%, }}" --rivals "[$OUTPUT/rivals-test]" \
            --output "$OUTPUT/replay-test"
        ;;
    live) # fixed k = 8 and every controller at its out-of-fold threshold
        evaluate gsm8k "$TEST" "$OUTPUT/live" --benchmark.limit "${LIVE_LIMIT:-300}" \
            --policies "$(listed power $LIVE)" $(shipped $LIVE)
        ;;
    latency) # the same, one question at a time on 8 rows
        evaluate gsm8k "$TEST" "$OUTPUT/latency" --benchmark.limit "${LATENCY_LIMIT:-12}" \
            --policies "$(listed power $LIVE)" $(shipped $LIVE) --compute.rows 8 --compute.questions_at_a_time 1
        ;;
    reference) # the published loop, one chain after another, as many as fit into the time
        dps bench --config "$CONFIGS/bench/qwen_0.5b.yaml" --model.name "$MODEL" --cases '[reference]' \
            ${TEST:+--benchmark.path "$TEST"} --sampler.num_mh_steps "$STEPS" \
            --reference_budget_s "${REFERENCE_S:-240}" --output "$OUTPUT/reference" $MORE
        ;;
    humaneval) # programs: the rivals, and the controllers that were trained on GSM8K
        evaluate humaneval "$HUMANEVAL" "$OUTPUT/humaneval" --benchmark.limit 100 --plain_max_k 64 \
            --policies "$(listed power plain lowtemp $LIVE)" $(shipped $LIVE)
        ;;
    math500) # one trajectory of each kind, four times
        evaluate math500 "$MATH500" "$OUTPUT/math500" --benchmark.limit 200 --plain_max_k 4 --k.start 1 --k.step 1 \
            --k.maximum 4 --sampler.block_size 96 --sampler.max_new_tokens 1536 --policies '[power, plain, lowtemp]'
        ;;
    *)
        echo "Unknown stage $stage: see the head of $0." >&2
        exit 2
        ;;
    esac
done
