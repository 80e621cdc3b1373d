"""What vLLM's configuration becomes with pruning on, what is refused, and what a wrong request gets.

The configurations are vLLM's own, made from real options or changed in one field. The cases are the oracle of the table
of refusals: every row needs one, and names options that vLLM's command line has.
"""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace
from typing import Any

import omnidrop_vllm as plugin
import pytest
import vllm
from omnidrop_vllm import config, request, unsupported
from omnidrop_vllm.settings import read
from vllm import SamplingParams
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from omnidrop import ModelError, SettingError

LAYERS = 8
ARCHITECTURE = "Qwen2_5OmniModel"
PLAIN = dict(
    dtype="float32", max_model_len=2048, max_num_batched_tokens=4096, enforce_eager=True, enable_prefix_caching=False,
    enable_chunked_prefill=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(thinker) -> Any:
    return thinker("qwen2_5", LAYERS).folder


@pytest.fixture
def make(folder):
    """A VllmConfig as `vllm serve` makes it."""
    plugin.register()

    def made(omnidrop: dict[str, Any] | None = None, **options: Any) -> VllmConfig:
        told = PLAIN | ({} if omnidrop is None else {"additional_config": {"omnidrop": omnidrop}}) | options
        return EngineArgs(model=str(folder), **told).create_engine_config()

    return made


@pytest.fixture(scope="module")
def accepted(folder) -> VllmConfig:
    plugin.register()
    return EngineArgs(model=str(folder), additional_config={"omnidrop": {}}, **PLAIN).create_engine_config()


def change(root: Any, path: str, value: Any) -> Any:
    """A copy with one field changed, which must exist."""
    root = copy.deepcopy(root)
    *way, name = path.split(".")
    owner = root
    for step in way:
        owner = getattr(owner, step)
    assert hasattr(owner, name), f"vLLM {vllm.__version__} has no {path}"
    object.__setattr__(owner, name, value)
    return root


# what is set


def test_off_changes_nothing(make):
    for stock in (make(), make(additional_config={"omnidrop": False}), make(additional_config={"other": 1})):
        assert "omnidrop" not in stock.parallel_config.worker_cls
        assert stock.scheduler_config.scheduler_cls is None
        assert not stock.model_config.logits_processors


def test_on_chooses_worker_scheduler_and_guard(accepted):
    from vllm.utils.import_utils import resolve_obj_by_qualname

    assert resolve_obj_by_qualname(accepted.parallel_config.worker_cls).__name__ == "CPUWorker"
    assert accepted.scheduler_config.get_scheduler_cls().__module__ == "omnidrop_vllm.scheduler"
    assert accepted.model_config.logits_processors == ["omnidrop_vllm.request:RequestValidator"]
    assert accepted.model_config.multimodal_config.mm_processor_cache_gb == 0
    config.late_check(accepted, read(accepted.additional_config))  # what was chosen is not refused later


def test_on_a_gpu_graphs_are_piecewise_unless_said(accepted, monkeypatch):
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    for given, becomes in ((None, CUDAGraphMode.PIECEWISE), (CUDAGraphMode.NONE, CUDAGraphMode.NONE)):
        changed = change(accepted, "compilation_config.cudagraph_mode", given)
        changed.model_config.model_class_overrides = {}
        config.prepare(changed, read(changed.additional_config))
        assert changed.compilation_config.cudagraph_mode == becomes
        assert changed.parallel_config.worker_cls.endswith("gpu_worker.GPUWorker")


# what is refused


def of(path: str, value: Any) -> Any:
    return lambda accepted, monkeypatch: change(accepted, path, value)


def runner_v2(accepted, monkeypatch):
    monkeypatch.setattr(VllmConfig, "use_v2_model_runner", True)
    return accepted


def platform(accepted, monkeypatch):
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    return accepted


def experts(accepted, monkeypatch):
    monkeypatch.setattr(type(accepted.model_config), "is_moe", True)
    return change(accepted, "parallel_config.data_parallel_size", 2)


CONNECTOR = SimpleNamespace(kv_connector="SomeConnector", ec_connector="SomeConnector")
CASES = {
    "Model Runner V2": [runner_v2],
    "this platform": [platform],
    "a pooling model": [of("model_config.runner_type", "pooling")],
    "another implementation of the model": [of("model_config.model_impl", "transformers")],
    "another class of the model": [of("model_config.model_class_overrides", {ARCHITECTURE: "mine:Model"})],
    "prefix caching": [of("cache_config.enable_prefix_caching", True)],
    "pipeline parallelism": [of("parallel_config.pipeline_parallel_size", 2)],
    "data parallelism of a mixture of experts": [experts],
    "expert parallelism": [
        of("parallel_config.enable_expert_parallel", True),
        of("parallel_config.enable_eplb", True),
    ],
    "sequence parallelism": [of("parallel_config.enable_hc_sp", True)],
    "context parallelism": [
        of("parallel_config.decode_context_parallel_size", 2),
        of("parallel_config.prefill_context_parallel_size", 2),
    ],
    "microbatches": [of("parallel_config.enable_dbo", True), of("parallel_config.ubatch_size", 2)],
    "a KV connector": [of("kv_transfer_config", CONNECTOR)],
    "KV cache offloading": [of("cache_config.kv_offloading_size", 1.0)],
    "an encoder cache connector": [of("ec_transfer_config", CONNECTOR)],
    "media given as embeddings": [of("model_config.multimodal_config.enable_mm_embeds", True)],
    "weight offloading": [
        of("offload_config.uva.cpu_offload_gb", 1),
        of("offload_config.prefetch.offload_group_size", 2),
    ],
    "LoRA": [of("lora_config", SimpleNamespace())],
    "speculative decoding": [of("speculative_config", SimpleNamespace())],
    "another pruner of video": [of("model_config.multimodal_config.video_pruning_rate", 0.5)],
    "the shared-memory cache of processed media": [
        of("model_config.multimodal_config.mm_processor_cache_type", "shm"),
    ],
    "compiled or captured encoders": [
        of("compilation_config.compile_mm_encoder", True),
        of("compilation_config.cudagraph_mm_encoder", True),
    ],
    "full CUDA graphs": [
        of("compilation_config.cudagraph_mode", mode)
        for mode in (CUDAGraphMode.FULL, CUDAGraphMode.FULL_DECODE_ONLY, CUDAGraphMode.FULL_AND_PIECEWISE)
    ],
    "cascade attention": [of("model_config.disable_cascade_attn", False)],
    "fast prefill of shared caches": [of("cache_config.kv_sharing_fast_prefill", True)],
    "a single group of cache blocks in the mode kv-groups": [
        of("scheduler_config.disable_hybrid_kv_cache_manager", True),
    ],
    "another worker class": [of("parallel_config.worker_cls", "mine.Worker")],
    "another scheduler class": [of("scheduler_config.scheduler_cls", "mine.Scheduler")],
}


def test_every_row_has_a_case():
    assert [row.what for row in unsupported.UNSUPPORTED] == list(CASES)


@pytest.mark.parametrize(
    ("row", "case"),
    [(row, case) for row in unsupported.UNSUPPORTED for case in CASES.get(row.what, [])],
    ids=lambda value: getattr(value, "what", ""),
)
def test_what_does_not_go_together_is_refused(accepted, monkeypatch, row, case):
    settings = read(accepted.additional_config)
    unsupported.refuse(accepted, settings)
    changed = case(accepted, monkeypatch)
    with pytest.raises(ModelError) as refused:
        unsupported.refuse(changed, settings)
    assert str(refused.value) == f"omnidrop cannot prune with {row.what}: {row.why}; {row.instead}"


def test_replicas_of_a_dense_model_prune(accepted):
    changed = change(accepted, "parallel_config.data_parallel_size", 2)
    unsupported.refuse(changed, read(changed.additional_config))


def test_the_options_that_messages_name_exist():
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    options = {option for action in parser._actions for option in action.option_strings}
    named = {flag for row in unsupported.UNSUPPORTED for flag in re.findall(r"--[a-z0-9-]+", row.instead)}
    assert len(named) > 20
    assert named - options <= {"--spec"}, "the --spec options are several"
    assert any(option.startswith("--spec-") for option in options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(enable_prefix_caching=True), "--no-enable-prefix-caching"),
        (dict(pipeline_parallel_size=2), "pipeline parallelism"),
        (dict(enable_lora=True), "LoRA"),
        (dict(worker_cls="mine.Worker"), "another worker class"),
        (dict(scheduler_cls="mine.Scheduler"), "another scheduler class"),
        (dict(disable_hybrid_kv_cache_manager=True), "--disable-hybrid-kv-cache-manager"),
        (dict(compilation_config={"cudagraph_mode": "FULL"}), "full CUDA graphs"),
        (dict(attention_backend="FLASHINFER"), "the attention backend FLASHINFER"),
    ],
    ids=str,
)
def test_the_same_by_the_options_that_users_give(make, options, says):
    with pytest.raises(ModelError, match=says):
        make({}, **options)


def test_one_group_will_do_where_one_is_asked_for(make):
    make({"mode": "compute-only"}, disable_hybrid_kv_cache_manager=True)
    make({"method": "uniform"}, disable_hybrid_kv_cache_manager=True)


@pytest.mark.parametrize(
    ("entry", "says"),
    [({"stages": LAYERS + 1}, "stages is 9; it must be a whole number from 1 to 8"), ({"keep": 2}, "keep is 2")],
)
def test_a_wrong_entry_stops_the_server(make, entry, says):
    with pytest.raises(ValueError, match=says):  # pydantic wraps a SettingError, and shows its text
        make(entry)


def test_backends():
    for name in ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN"):
        assert hasattr(AttentionBackendEnum, name)
        unsupported.check_backend(name)
    with pytest.raises(ModelError, match=r"attention backend FLASHINFER: .* --attention-backend with one of CPU_ATTN"):
        unsupported.check_backend("FLASHINFER")


# what is warned of


def test_advice(accepted):
    def texts(path: str | None = None, value: Any = None, entry: dict[str, Any] | None = None) -> list[str]:
        changed = accepted if path is None else change(accepted, path, value)
        return config.advice(changed, read({"omnidrop": entry or {}}))

    assert texts() == []
    (text,) = texts("scheduler_config.enable_chunked_prefill", True)
    assert "--no-enable-chunked-prefill" in text
    (text,) = texts("scheduler_config.max_num_batched_tokens", 1000)
    assert "above 1000 tokens" in text and "--max-num-batched-tokens 2048" in text
    (text,) = texts("scheduler_config.long_prefill_token_threshold", 500)
    assert "above 500 tokens" in text
    seven = of_layers(accepted, 7)
    (text,) = config.advice(seven, read({"omnidrop": {"stages": 2}}))
    assert "2 stages do not divide 7 layers" in text and "12%" in text  # 3 + 4 layers, padded to 4 each
    assert config.advice(seven, read({"omnidrop": {"stages": 2, "mode": "compute-only"}})) == []


@pytest.mark.parametrize(
    ("layers", "stages", "share"), [(28, 4, 0), (28, 1, 0), (28, 28, 0), (28, 3, 2 / 30), (7, 2, 1 / 8)]
)
def test_padding(layers, stages, share):
    assert config.padding(layers, stages) == pytest.approx(share)


def of_layers(accepted: VllmConfig, layers: int) -> VllmConfig:
    return change(accepted, "model_config.model_arch_config.total_num_hidden_layers", layers)


@pytest.mark.parametrize(
    ("layers", "right", "wrong"), [(8, (1, 2, 4, 8), (3, 5, 6, 7)), (28, (1, 3, 4, 6, 28), (10, 20))]
)
def test_a_stage_is_one_group_of_blocks(accepted, layers, right, wrong):
    """As vLLM itself groups the layers: what is refused, it would split; what is not, it does not."""
    changed = of_layers(accepted, layers)
    for stages in (*right, *wrong):
        starts = [stage * layers // stages for stage in range(stages)]
        of_layer = [sum(first <= layer for first in starts) - 1 for layer in range(layers)]
        groups = grouped(of_layer)
        entry = {"omnidrop": {"stages": stages}}
        if stages in right:
            assert len(groups) == stages
            unsupported.refuse(changed, read(entry))
        else:
            assert len(groups) > stages
            with pytest.raises(
                SettingError, match=f"stages is {stages}; choose one of 1, 2, 4, .* the {layers} decoder"
            ):
                unsupported.refuse(changed, read(entry))
        entry["omnidrop"]["mode"] = "compute-only"
        unsupported.refuse(changed, read(entry))


def grouped(stages: list[int]) -> list[Any]:
    """vLLM's own groups for layers of these stages."""
    import torch
    from omnidrop_vllm.kv import StageSpec
    from vllm.v1.core.kv_cache_utils import _get_kv_cache_groups_uniform_page_size

    sizes = dict(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32)
    return _get_kv_cache_groups_uniform_page_size(
        {f"layer {layer}": StageSpec(stage=stage, **sizes) for layer, stage in enumerate(stages)}
    )


# one request


def test_a_wrong_override_is_the_requests_own_error(accepted):
    from vllm.v1.sample.logits_processor import validate_logits_processors_parameters

    request.guard(accepted, read(accepted.additional_config))
    processors = accepted.model_config.logits_processors
    for asked in (None, {"omnidrop": "off"}, {"omnidrop_keep": 0.5}, {"another": 1}):
        validate_logits_processors_parameters(processors, SamplingParams(extra_args=asked))
    for asked in ({"omnidrop": "no"}, {"omnidrop_keep": 7}, {"omnidrop_kept": 0.5}):
        with pytest.raises(VLLMValidationError, match=r"omnidrop|keep"):
            validate_logits_processors_parameters(processors, SamplingParams(extra_args=asked))


def test_the_guard_stands_beside_other_processors_and_leaves(accepted):
    changed = change(accepted, "model_config.logits_processors", ["mine:Processor"])
    request.guard(changed, read(changed.additional_config))
    request.guard(changed, read(changed.additional_config))
    assert changed.model_config.logits_processors == ["mine:Processor", request.PATH]
    request.unguard(changed)
    assert changed.model_config.logits_processors == ["mine:Processor"]
    request.guard(accepted, read(accepted.additional_config))
    request.unguard(accepted)
    assert accepted.model_config.logits_processors is None


def test_in_an_engine_a_wrong_request_fails_alone(folder, engine):
    llm = engine(folder, {"keep": 0.5})
    ask = {"prompt_token_ids": [5, 6, 7]}
    good = SamplingParams(max_tokens=2, temperature=0, extra_args={"omnidrop": "off"})
    with pytest.raises(VLLMValidationError, match="it must lie in"):
        llm.generate(ask, SamplingParams(max_tokens=2, extra_args={"omnidrop_keep": 3}), use_tqdm=False)
    assert len(llm.generate(ask, good, use_tqdm=False)[0].outputs[0].token_ids) == 2
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    assert not runner.input_batch.logitsprocs_need_output_token_ids, "the guard would cost every step"
