#!/bin/bash
# Train on several machines under SLURM:
#
#   sbatch --nodes 2 accelerate_configs/slurm.sh recipes/qwen3_14b.yaml \
#       --accelerate_config accelerate_configs/fsdp2_multinode.yaml [--key value ...]
#   sbatch --nodes 3 accelerate_configs/slurm.sh recipes/qwen3_14b.yaml --vllm_mode server
#
# In the second form, the last machine serves the model with vLLM and all other machines train. `entropy-grpo plan --serve`
# writes the server's command: model, length of sequences, GPUs per copy of the model, and number of copies. PLAN_OPTIONS
# holds further options of the plan, such as "--gpu-memory 40" or "--model-config FILE". The script starts no server if the
# recipe names one (vllm_server_host or vllm_server_base_url). The run folder must be on a file system that all machines
# share. A requeued job resumes from the newest intact checkpoint.
#
# SLURM sends SIGTERM before it preempts the job, and here also 15 minutes before the job's time is over. The run then
# saves a checkpoint, at the latest at the end of its step, and requeues the job (exit status 75). If a step and a checkpoint
# take longer, raise the number in --signal. The GraceTime of the partition bounds the time before preemption.
#SBATCH --job-name=entropy-grpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=TERM@900
#SBATCH --open-mode=append
#SBATCH --output=entropy-grpo-%j.log
set -euo pipefail

recipe=${1:?usage: sbatch --nodes N accelerate_configs/slurm.sh RECIPE [--key value ...]}
shift
run=${RUN_FOLDER:-runs/$(basename "$recipe" .yaml)-$SLURM_JOB_ID}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
trainers=("${nodes[@]}")
settings=(--output_dir "$run" --resume_from_checkpoint auto)
gpus_per_node=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}

others=$(( ${#nodes[@]} > 1 ? ${#nodes[@]} - 1 : 1 ))
# shellcheck disable=SC2086  # PLAN_OPTIONS has several words
serve=$(entropy-grpo plan "$recipe" --serve --gpus "$gpus_per_node" --nodes "$others" ${PLAN_OPTIONS:-} "$@")
if [[ -n $serve ]]; then
  (( ${#nodes[@]} > 1 )) || { echo "the server needs a separate machine: add one with --nodes" >&2; exit 2; }
  server=${nodes[-1]}
  trainers=("${nodes[@]:0:others}")
  settings+=(--vllm_server_host "$server")
  [[ " $* " == *" --vllm_server_timeout"* ]] || settings+=(--vllm_server_timeout 1800)  # it loads its model first
  mapfile -t serve <<< "$serve"
  # The trainers need the server until the end of their step, so the server must outlive the signal.
  VLLM_SERVER_DEV_MODE=1 srun --overlap --nodes 1 --ntasks 1 --nodelist "$server" \
    bash -c 'trap "" TERM; setsid --wait "$@"' server "${serve[@]}" &
  trap 'kill %1 2>/dev/null || true' EXIT
fi

export MACHINES=${#trainers[@]}
export GPUS=$(( MACHINES * gpus_per_node ))
export MAIN_ADDRESS=${trainers[0]}
export MAIN_PORT=${MAIN_PORT:-$(( 20000 + SLURM_JOB_ID % 20000 ))}

trap : TERM  # this shell must outlive the signal, too
code=0
# $SLURM_PROCID is the rank of a machine. Single quotes leave it to be expanded on that machine.
srun --kill-on-bad-exit=1 --nodes "$MACHINES" --ntasks "$MACHINES" --nodelist "$(IFS=,; echo "${trainers[*]}")" \
  bash -c 'exec entropy-grpo launch --multi_gpu --num_machines "$MACHINES" --num_processes "$GPUS" \
    --machine_rank "$SLURM_PROCID" --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" \
    --rdzv_backend static "$@"' launch "$recipe" "${settings[@]}" "$@" || code=$?
if (( code == 75 )); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
