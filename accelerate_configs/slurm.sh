#!/bin/bash
# Train on several machines under SLURM:
#
#   sbatch --nodes 2 accelerate_configs/slurm.sh recipes/qwen3_14b.yaml \
#       --accelerate_config accelerate_configs/fsdp2_multinode.yaml [--key value ...]
#   sbatch --nodes 3 --export ALL,VLLM_MODEL=Qwen/Qwen3-14B-Base accelerate_configs/slurm.sh recipes/qwen3_14b.yaml
#
# In the second form, the last machine serves the model with vLLM and all other machines train. VLLM_REVISION sets a
# commit on the Hub. VLLM_TENSOR_PARALLEL GPUs (default 1) hold one copy of the model, and VLLM_DATA_PARALLEL copies
# (default: as many as fit) generate. The run folder must be on a file system that all machines share. A requeued job
# resumes from the newest intact checkpoint.
#
# SLURM sends SIGTERM before it preempts the job, and here also 15 minutes before the job's time is over. The run then
# saves a checkpoint at the end of its step and requeues the job (exit status 75). If a step and a checkpoint take
# longer, raise the number in --signal. The GraceTime of the partition bounds the time before preemption.
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

if [[ -n ${VLLM_MODEL:-} ]]; then
  (( ${#nodes[@]} > 1 )) || { echo "VLLM_MODEL needs a separate machine: add one with --nodes" >&2; exit 2; }
  server=${nodes[-1]}
  trainers=("${nodes[@]:0:${#nodes[@]}-1}")
  settings+=(--use_vllm true --vllm_mode server --vllm_server_host "$server")
  tensor_parallel=${VLLM_TENSOR_PARALLEL:-1}
  data_parallel=${VLLM_DATA_PARALLEL:-$(( gpus_per_node / tensor_parallel ))}
  (( data_parallel > 0 )) || { echo "VLLM_TENSOR_PARALLEL is above $gpus_per_node, the GPUs of a machine: lower it" >&2; exit 2; }
  # The trainers need the server until the end of their step, so the server must outlive the signal.
  VLLM_SERVER_DEV_MODE=1 srun --overlap --nodes 1 --ntasks 1 --nodelist "$server" \
    bash -c 'trap "" TERM; setsid --wait "$@"' server vllm serve "$VLLM_MODEL" ${VLLM_REVISION:+--revision "$VLLM_REVISION"} \
    --weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs \
    --max-logprobs -1 --tensor-parallel-size "$tensor_parallel" --data-parallel-size "$data_parallel" &
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
