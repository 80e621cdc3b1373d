# vLLM 0.32 with this project's plugin, for NVIDIA GPUs.
#
# NOT BUILT YET: written where no container engine was at hand. The steps follow vLLM's documentation for images on top
# of its own; a first build may need a correction.
#
#   docker build --tag omnidrop-vllm .
#   docker run --rm --gpus all --ipc=host --publish 127.0.0.1:8000:8000 --volume omnidrop-cache:/home/omnidrop/.cache \
#     omnidrop-vllm Qwen/Qwen2.5-Omni-7B --max-model-len 32768 --max-num-batched-tokens 32768 \
#     --no-enable-prefix-caching --no-enable-chunked-prefill \
#     --additional-config '{"omnidrop": {"keep": 0.3, "stages": 4, "mode": "kv-groups"}}'
#
# Everything behind the image's name goes to `vllm serve`; docs/vllm.md explains the options. Without the entry
# "omnidrop" it is a plain vLLM server.
FROM vllm/vllm-openai:v0.32.0

# The image's torch, CUDA libraries and vLLM stay exactly as they are: a requirement that does not fit stops the build.
# soundfile: vLLM reads recordings with it.
WORKDIR /opt/omnidrop
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
COPY omnidrop-vllm ./omnidrop-vllm
RUN uv pip list --system --format=freeze > /tmp/image.txt \
    && uv pip install --system --no-cache --constraint /tmp/image.txt . ./omnidrop-vllm soundfile \
    && rm /tmp/image.txt

# The plugin was written for the first of vLLM's two model runners; on a GPU the second is the default.
ENV VLLM_USE_V2_MODEL_RUNNER=0

# A user of its own. Weights, vLLM's compiled code and Triton's kernels go into ~/.cache, which a volume can keep: a new
# volume takes over the owner of the folder that is made here.
RUN useradd --create-home --uid 10001 omnidrop \
    && install --directory --owner omnidrop --group omnidrop /home/omnidrop/.cache
USER omnidrop
ENV HOME=/home/omnidrop \
    HF_HOME=/home/omnidrop/.cache/huggingface \
    TRITON_CACHE_DIR=/home/omnidrop/.cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/home/omnidrop/.cache/inductor
WORKDIR /home/omnidrop

EXPOSE 8000
ENTRYPOINT ["vllm", "serve"]
