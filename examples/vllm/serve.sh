#!/bin/sh
# Serve a Qwen-Omni model with pruned prompts; further words are options of `vllm serve`.
#
#   sh examples/vllm/serve.sh Qwen/Qwen2.5-Omni-7B --port 9000
#   sh examples/vllm/serve.sh                                     the shipped tiny model, on any machine
#
# --no-enable-prefix-caching    a cached prefix would be another question's survivors: the plugin refuses to start with it
# --no-enable-chunked-prefill   a prompt that is split over several steps runs unpruned
# --max-num-batched-tokens      for the same reason: not less than the longest prompt
# --trust-request-mm-kwargs     else vLLM refuses requests that ask for the sound of their video. It lets them set anything
#                               else of the model's processor too: for clients that you trust (docs/vllm.md)
# VLLM_USE_V2_MODEL_RUNNER=0    the plugin knows the first of vLLM's two model runners; on a GPU the second is the default
set -eu
export VLLM_USE_V2_MODEL_RUNNER=0
if [ $# -eq 0 ]; then # the tiny model is a thinker alone: write it as vLLM reads it, and run the command that it names
  eval "exec env $(python -m omnidrop_vllm.export "$(mktemp -d)/tiny")"
fi
exec vllm serve "$@" \
  --additional-config '{"omnidrop": {"keep": 0.3, "stages": 4, "mode": "kv-groups"}}' \
  --max-model-len 32768 --max-num-batched-tokens 32768 \
  --no-enable-prefix-caching --no-enable-chunked-prefill --trust-request-mm-kwargs
