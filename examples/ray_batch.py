"""A folder of clips through Ray Data's own processor for language models, on vLLM with omnidrop's plugin.

Run it:  python examples/ray_batch.py FOLDER MODEL "QUESTION" > answers.jsonl
MODEL is a full checkpoint of Qwen2.5-Omni or Qwen3-Omni. It needs `pip install 'omnidrop[ray]' omnidrop-vllm`, and uses
every GPU that Ray finds. `omnidrop batch FOLDER QUESTION --out answers.jsonl --workers N` does the same and more: it
goes on where it stopped, lists failures apart, knows what was kept, and ends whatever a clip does (docs/batch.md).
"""

# %% The engine: vLLM's arguments, with the method where the plugin looks for it.
import json
import os
import sys
from pathlib import Path

import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from omnidrop import media
from omnidrop.batch.job import Job
from omnidrop.batch.offline import engine_options, prompt
from omnidrop.methods import parse

folder, model, question = Path(sys.argv[1]).absolute(), sys.argv[2], sys.argv[3]
limits = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}  # such as '{"max_model_len": 16384}'
job = Job(folder=folder, engine="vllm", model=model, method=parse("omnidrop:stages=4", keep=0.3), engine_options=limits)

os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the plugin knows vLLM's first runner; a cluster is told itself
ray.init(include_dashboard=False, log_to_driver=False)
gpus = int(ray.cluster_resources().get("GPU", 0))
config = vLLMEngineProcessorConfig(
    model_source=model,
    engine_kwargs=engine_options(job),
    concurrency=(max(1, gpus), max(1, gpus)),
    batch_size=8,
    # the prompt is made here, by omnidrop: same pictures, same sound, same words as `omnidrop run`
    chat_template_stage=False,
    tokenize_stage=False,
    detokenize_stage=False,
    prepare_multimodal_stage=False,
    placement_group_config={"bundles": [{"CPU": 1, **({"GPU": 1} if gpus else {})}]},
    should_continue_on_error=True,
    log_engine_metrics=False,
)


# %% From a row to vLLM's prompt, and from vLLM's output to a row. A clip that cannot be read is an error in its row.
class Front:
    """Reads clips and makes prompts; loads the model's processor once a process."""

    processor = None

    def __call__(self, row: dict) -> dict:
        if Front.processor is None:
            from transformers import AutoProcessor

            Front.processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
        sampling = {"temperature": 0.0, "max_tokens": 128}
        try:
            told = prompt(Front.processor, job, media.read(folder / row["file"]), question)
        except Exception as error:
            return {"sampling_params": sampling, "__inference_error__": f"{type(error).__name__}: {error}"}
        return {
            "tokenized_prompt": told["prompt_token_ids"],
            "multimodal_data": told["multi_modal_data"],
            "mm_processor_kwargs": told["mm_processor_kwargs"],
            "sampling_params": sampling,
        }


def answered(row: dict) -> dict:
    return {"file": row["file"], "answer": row["generated_text"].strip()}


# %% The run. Rows come as they are done, in any order.
clips = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.mp4"))
rows = ray.data.from_items([{"file": name} for name in clips], override_num_blocks=-(-len(clips) // 8))
process = build_processor(config, preprocess=Front(), postprocess=answered)
for row in process(rows).iter_rows():
    print(json.dumps({name: row.get(name) for name in ("file", "answer", "__inference_error__")}), flush=True)
