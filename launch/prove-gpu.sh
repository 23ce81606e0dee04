#!/usr/bin/env bash
# Proves and measures gpt3_jax on one NVIDIA GPU, beside PyTorch, and prints one page: numerics, speed, plans against
# reality. In a checkout with `pip install -c constraints.txt -e '.[cuda,dev]'`:
#
#   launch/prove-gpu.sh            every stage, in order of value; called again, it goes on where it stopped
#   launch/prove-gpu.sh NAME ...   these stages, again; or groups of them, by what stands before the first -
#
# gpt3_jax/bench/README.md lists the stages and says how to read the page. Each stage has a time limit of its own, and
# one that fails stops no other. In the environment:
#
#   OUT            folder for summary.md and, of every stage, NAME.out and NAME.log (default: runs/prove-gpu)
#   BUDGET         seconds after which no stage begins and the one under way is ended (default: 540)
#   PYTHON         the Python that has gpt3_jax (default: python)
#   TORCH_PYTHON   the Python that has PyTorch, for the peer (default: PYTHON)
#   NANOGPT        a nanoGPT checkout, whose model.py is the peer (default: transformers' GPT-2)
#   TINY=1         everything on a CPU, with tiny models: shows that the stages start, and measures nothing
#
# Ends with 0 if every stage that was reached has passed, 1 if one has failed, 3 if JAX has no GPU.
set -u -f
cd "$(dirname "$0")/.." || exit 2
names=$* tiny=${TINY:-} budget=${BUDGET:-540} out=${OUT:-runs/prove-gpu}
python=${PYTHON:-python} torch_python=${TORCH_PYTHON:-${PYTHON:-python}}
mkdir -p "$out" && out=$(cd "$out" && pwd) && touch "$out/stages.tsv" || exit 2

patience=1
if [ "$tiny" ]; then
  export JAX_PLATFORMS=cpu && patience=3 # two busy cores are slow to compile
else
  export JAX_PLATFORMS=cuda,cpu CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
  export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES%%,*}" # one of them
  # What gpt3-jax plan reckons with; XLA itself would take 0.75 of the GPU's memory.
  if [ -z "${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]; then # the older name; XLA refuses both together
    export XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-0.92}"
  fi
fi
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

summarise() { "$python" -m gpt3_jax.bench.proof "$out" >"$out/summary.new" && mv "$out/summary.new" "$out/summary.md"; }

# stage NAME LIMIT LEAST COMMAND ...: stdout into NAME.out, stderr into NAME.log. Not begun with fewer than LEAST seconds
# of the budget left; ended after LIMIT seconds, or with the budget.
stage() {
  local name=$1 limit=$(($2 * patience)) least=$3 left=$((budget - SECONDS)) began=$SECONDS code=0 said=
  shift 3
  if [ "$names" ]; then
    case " $names " in *" ${name%%-*} "* | *" $name "*) ;; *) return ;; esac
  elif grep -q "^$name"$'\t[0-9]' "$out/stages.tsv"; then
    return
  fi
  if ((left < least)); then
    code="no time"
  else
    # As Ctrl-C would: pytest and bench say what they have.
    timeout -s INT -k 20 $((limit < left ? limit : left)) "$@" >"$out/$name.out" 2>"$out/$name.log" || code=$?
    [ $code = 0 ] || said=": $(tail -n 1 "$out/$name.log" | cut -c1-300)"
    echo "$SECONDS s: $name ended with $code after $((SECONDS - began)) s$said" >&2
    ((limit <= left || code < 124)) || code="no time" # the budget's end, not its own: the next call begins it anew
  fi
  forget "$name"
  printf '%s\t%s\t%s\n' "$name" "$code" $((SECONDS - began)) >>"$out/stages.tsv"
  ((SECONDS == began)) || summarise
}
forget() { sed -i "/^$1\t/d" "$out/stages.tsv"; }

# The training steps: MICROBATCHES ARGUMENTS. The first microbatch that fits is measured.
card=$(nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits -i "${CUDA_VISIBLE_DEVICES:-0}" 2>/dev/null)
memory=${card##*, }
[[ $memory =~ ^[0-9]+$ ]] || memory=0
dense="--model.attention_pattern [dense]" short="" train="--train.tokens 300000" peer_small="16 32,24,8" peer_xl="8,4,2"
declare -A cells=(
  [small]="32,16,8,4 --config gpt3-small --memory.remat none"
  [small-dense]="32,16,8,4 --config gpt3-small --memory.remat none $dense"
  [xl]="12,8,4,2 --config gpt3-xl --memory.remat none"
  [xl-dense]="12,8,4,2 --config gpt3-xl --memory.remat none $dense"
  [xl-full]="16,8,4 --config gpt3-xl"
  [2.7b]="4,2,1 --config gpt3-2.7b --memory.remat none"
  [6.7b]="12,8,4 --config gpt3-6.7b --memory.remat none --model.n_layers 8" # of the whole, the state alone is 75 GiB
)
if ((memory > 100000)); then
  peer_xl="16,8" cells[xl]=${cells[xl]/12,8/24,16} cells[xl-dense]=${cells[xl-dense]/12,8/24,16}
  cells[2.7b]=${cells[2.7b]/4,2/12,8} cells[6.7b]="8,4 --config gpt3-6.7b"
fi
if [ "$tiny" ]; then
  shape="--model.n_layers 2 --model.d_model 32 --model.n_heads 2 --model.n_ctx 64 --model.n_vocab 300"
  for cell in "${!cells[@]}"; do cells[$cell]="2,1 --config gpt3-small --memory.remat none $shape"; done
  peer_small="2" peer_xl="2" short="$shape --prompt-tokens 16 --new-tokens 4"
  train="--train.tokens 8192 --train.eval_sequences 8"
fi
case ${card%%, *} in # as gpt3_jax/devices.py names them
  "NVIDIA H200") topology=h200:1x1 ;;
  "NVIDIA H100 80GB HBM3") topology=h100:1x1 ;;
  "NVIDIA A100-SXM4-80GB") topology=a100:1x1 ;;
  *) topology="" ;;
esac

gpt3="$python -m gpt3_jax"
step() { # STAGE LIMIT LEAST CELL [OPTION]
  local sizes size arguments
  read -r sizes arguments <<<"${cells[$4]}"
  for size in ${sizes//,/ }; do
    stage "$1" "$2" "$3" $gpt3 bench step $arguments --memory.microbatch "$size" --steps 8 --json "${@:5}"
    [ "$size" != "${sizes##*,}" ] && grep -qsE "fit the devices|RESOURCE_EXHAUSTED" "$out/$1.log" || break
    forget "$1" # it was too much; the next
  done
}
plans() { # predictions for the same steps, compiled beside the stages with the CPU time that they leave
  local cell sizes arguments
  for cell in xl small 2.7b 6.7b xl-dense xl-full; do
    [ ! -e "$out/plan-$cell.out" ] || continue
    read -r sizes arguments <<<"${cells[$cell]}"
    nice -n 19 timeout 150 $gpt3 plan $arguments --topology "$topology" --train.ramp_tokens 0 --json \
      --train.batch_tokens $((${sizes%%,*} * 2048)) >"$out/plan-$cell.new" 2>"$out/plan-$cell.log" &
    echo $! >"$out/plan.pid"
    wait $! && mv "$out/plan-$cell.new" "$out/plan-$cell.out"
  done
}

case " $names " in *" machine "*) forget machine ;; esac
names="" stage machine 60 5 $gpt3 bench ceilings --json # whatever is asked for
none=""
if grep -q "^machine"$'\t[1-9]' "$out/stages.tsv"; then
  none=$(tail -n 1 "$out/machine.log")
elif grep -q "^machine"$'\t0' "$out/stages.tsv" && [ -z "$tiny" ] && ! grep -qs '"platform": "gpu"' "$out/machine.out"; then
  # Although JAX_PLATFORMS names cuda, JAX may take the CPU without a word.
  none="JAX runs on the CPU here; is jax[cuda13] installed, does nvidia-smi see the GPU?"
fi
if [ "$none" ]; then
  forget machine # to be tried again
  echo "prove-gpu.sh: no GPU to measure: $none (TINY=1 tries this script on a CPU)" >&2
  exit 3
fi
stage peer-matmul 60 5 "$torch_python" launch/peer_pytorch.py matmul
planning=
if [ "$topology" ] && [ -z "$tiny$names" ]; then plans & planning=$!; fi
# `tiny` is the same checks on a CPU. Without the default options, which need pytest-xdist.
stage numerics 200 40 "$python" -m pytest -o addopts= -o junit_family=xunit1 --junitxml "$out/numerics.xml" -q \
  -p no:cacheprovider -m "${tiny:+not }gpu" tests/test_gpu_numerics.py
step step-xl 110 40 xl
step step-small 100 35 small
peer=(env PYTHONPATH="${NANOGPT:-}" "$torch_python" launch/peer_pytorch.py)
stage peer-small 130 50 "${peer[@]}" small $peer_small
stage peer-xl 150 70 "${peer[@]}" xl $peer_xl
# Without CUDA graphs: inside one, kernels have no names that tell where they belong. Also XL measured a second time.
flags="${XLA_FLAGS:-}"
[ "$tiny" ] || export XLA_FLAGS="$flags --xla_gpu_enable_command_buffer="
step profile-xl 120 50 xl --profile
export XLA_FLAGS="$flags"
step step-2.7b 110 45 2.7b
# From the start: a run would go on from the checkpoint that an earlier call has left.
stage train-quickstart 100 35 bash -c 'rm -rf "$1"; exec "${@:2}" --train.run_dir "$1"' - "$out/run" $gpt3 train $train
step step-xl-dense 100 40 xl-dense
stage decode-xl-1 100 40 $gpt3 bench decode --config gpt3-xl --rows 1 --repeat 3 --json $short
step step-6.7b 120 45 6.7b
stage decode-small-1 80 30 $gpt3 bench decode --config gpt3-small --rows 1 --repeat 3 --json $short
stage decode-xl-16 100 40 $gpt3 bench decode --config gpt3-xl --rows 16 --repeat 3 --json $short
stage store-checkpoint 60 20 $gpt3 bench checkpoint --config gpt3-small --repeat 3 --folder "$out" --json ${shape:-}
stage store-loader 60 15 $gpt3 bench loader --gigabytes "0.${tiny:+0}5" --repeat 3 --folder "$out" --json
step step-xl-full 100 40 xl-full
step step-small-dense 90 35 small-dense
for rows in 16 8; do
  stage decode-small-$rows 80 30 $gpt3 bench decode --config gpt3-small --rows $rows --repeat 3 --json $short
done
stage decode-xl-8 100 40 $gpt3 bench decode --config gpt3-xl --rows 8 --repeat 3 --json $short
if [ "$planning" ]; then # the last of them, if there is time
  ((budget <= SECONDS)) || timeout $((budget - SECONDS)) tail --pid="$planning" -f /dev/null
  kill "$planning" "$(<"$out/plan.pid")" 2>/dev/null
fi
summarise || exit 1
cat "$out/summary.md"
! grep -q $'\t[1-9][0-9]*\t' "$out/stages.tsv"
