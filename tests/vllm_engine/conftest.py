"""A tiny random Llama on disk, engines on it, and what it should say: one forward with an explicit mask per layer."""

import os
from importlib.util import find_spec

import pytest
import torch

from squeezeattention.testing import tiny_model

if find_spec("vllm") is None:  # `make test-vllm` has an environment with it
    collect_ignore_glob = ["test_*.py"]

# Read when vLLM is imported, which the tests do later.
os.environ.update(
    VLLM_HOST_IP="127.0.0.1", VLLM_USE_V2_MODEL_RUNNER="0", VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1",
)  # fmt: skip

BLOCK = 32
LAYERS = 6


@pytest.fixture(scope="session")
def model():
    return tiny_model(
        "llama", num_hidden_layers=LAYERS, hidden_size=64, intermediate_size=96, head_dim=32, vocab_size=512,
        max_position_embeddings=2048, attn_implementation="eager",
    )  # fmt: skip


@pytest.fixture(scope="session")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return str(path)


@pytest.fixture
def engine(folder):
    """Makes engines one after another, and closes them."""
    from vllm import LLM

    made = []

    def make(squeeze=None, **options):
        options = {
            "dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "block_size": BLOCK,
            "skip_tokenizer_init": True, "enable_prefix_caching": False, "num_gpu_blocks_override": 400,
            "max_num_batched_tokens": 1024, "disable_log_stats": True, **options,
        }  # fmt: skip
        if squeeze is not None:
            options["additional_config"] = {"squeeze": squeeze}
        made.append(LLM(options.pop("model", folder), **options))
        return made[-1]

    yield make
    for llm in made:
        llm.llm_engine.engine_core.shutdown()


def draw(lengths, seed=0, vocabulary=512):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def generate(llm, prompts, tokens):
    """Greedy continuations, to the end."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@torch.no_grad()
def told_by_masks(model, prompt, reply, layers, *, windowed):
    """Logits at each token of ``reply``: the whole text in one forward, each layer with a mask of its own."""
    ids = torch.tensor([prompt + reply])
    size = ids.shape[1]
    query, key = torch.arange(size)[:, None], torch.arange(size)[None]
    hooks = []
    for module, (sinks, recent) in zip(model.model.layers, layers, strict=True):
        kept = (key < sinks * BLOCK) | (key // BLOCK > query // BLOCK - recent)
        if not windowed:
            kept = kept | (query < len(prompt))
        mask = torch.where(kept & (key <= query), 0.0, torch.finfo(torch.float32).min)[None, None]

        def give(module, args, kwargs, mask=mask):
            return args, {**kwargs, "attention_mask": mask}

        hooks.append(module.self_attn.register_forward_pre_hook(give, with_kwargs=True))
    try:
        logits = model(ids, use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return logits[len(prompt) - 1 : -1]


def assert_greedy(logits, reply, *, margin=1e-4):
    """Every token of the reply is the best one, or as good as it."""
    best = logits.max(dim=-1).values
    said = logits.gather(-1, torch.tensor(reply)[:, None])[:, 0]
    assert (best - said).max().item() <= margin


def scheduler_of(llm):
    return llm.llm_engine.engine_core.engine_core.scheduler


def held_blocks(llm):
    """request -> real blocks that it holds in each group of layers."""
    managers = scheduler_of(llm).kv_cache_manager.coordinator.single_type_managers
    requests = {request for manager in managers for request in manager.req_to_blocks}
    return {
        request: [sum(not block.is_null for block in manager.req_to_blocks.get(request, ())) for manager in managers]
        for request in requests
    }
