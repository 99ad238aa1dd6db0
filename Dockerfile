# entropy-grpo with vLLM, for NVIDIA GPUs whose driver has CUDA 13.
#
#   docker build -t entropy-grpo .
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" -v "$HOME/.cache/huggingface:/root/.cache/huggingface" \
#       entropy-grpo launch qwen3_1_7b
#
# The processes of a run share memory, so that they need --ipc host. Runs are written to /work/runs.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

# Triton and FlashInfer compile kernels at run time, for which they need Python's headers and ninja. Packages of Ubuntu are
# not pinned, because its archive keeps only the newest patch of each.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git ninja-build python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3.12 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

COPY docker/requirements.txt /opt/entropy-grpo/docker/requirements.txt
RUN pip install --no-cache-dir --requirement /opt/entropy-grpo/docker/requirements.txt

COPY pyproject.toml setup.py README.md LICENSE /opt/entropy-grpo/
COPY entropy_grpo /opt/entropy-grpo/entropy_grpo
COPY recipes /opt/entropy-grpo/recipes
COPY accelerate_configs /opt/entropy-grpo/accelerate_configs
RUN pip install --no-cache-dir --no-deps /opt/entropy-grpo && pip check && entropy-grpo --version

WORKDIR /work
ENTRYPOINT ["entropy-grpo"]
CMD ["--help"]
