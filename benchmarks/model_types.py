"""Every causal LM that transformers builds from a config, tiny and random: does the cache carry it?

``make test-types`` (minutes on one core) writes ``benchmarks/model_types.json`` and fails where a type is wrong or
crashes. Each is held against

* the stock model: with room for the whole text, in a prompt, decode steps and a further turn, and left-padded;
* a forward over the whole text with explicit masks: with a small budget (the newest tokens in each layer).
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from squeezeattention import SqueezeCache, SqueezeError
from squeezeattention.hf.arguments import cache_name

RECORD = Path(__file__).with_suffix(".json")
LAYERS, PROMPT, TURN, TOKENS, BUDGET, WINDOW = 4, 20, 26, 34, 7, 9
TOLERANCE, MOST_PARAMETERS, SECONDS = 1e-3, 30_000_000, 120

#: What a config may call its sizes, and what they become.
SIZES: dict[str, Any] = {
    "vocab_size": 101, "vocab_size_per_layer_input": 101, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32,
    "word_embed_proj_dim": 32, "embedding_size": 32, "hidden_size_per_layer_input": 8, "intermediate_size": 48,
    "ffn_dim": 48, "ffn_hidden_size": 48, "n_inner": 48, "d_ff": 48, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24, "decoder_ffn_dim": 48,
    "expert_ffn_hidden_size": 24, "shared_intermediate_size": 24, "dense_intermediate_size": 48,
    "prefix_dense_intermediate_size": 48, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "decoder_attention_heads": 4, "head_dim": 8, "global_head_dim": 16, "d_kv": 8, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_k": 2,
    "moe_topk": 2, "top_k_experts": 2, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "qk_head_dim": 16, "v_head_dim": 12, "max_position_embeddings": 256, "n_positions": 256, "n_ctx": 256,
    "max_seq_len": 256, "max_sequence_length": 256, "rotary_dim": 4, "sliding_window": WINDOW, "window_size": WINDOW,
    "attention_window_size": WINDOW, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "laurel_rank": 4,
    "num_kv_shared_layers": 0, "image_size": 28, "patch_size": 14, "index_topk": 256, "index_n_heads": 2,
    "index_head_dim": 8, "num_hash_layers": 0, "attention_dropout": 0.0, "hidden_dropout": 0.0, "dropout": 0.0,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "num_nextn_predict_layers": 0,
}  # fmt: skip
#: Those that have to be given, though a config may leave them out.
NEEDED = ("head_dim", "num_experts_per_tok", "n_routed_experts", "pad_token_id", "bos_token_id", "eos_token_id")
DEPTHS = (
    "encoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "depth",
)
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "num_global_key_value_heads")


def shrunk(config: Any) -> dict[str, Any]:
    """Arguments for a small config of the same class: sizes by their names, per-layer lists by the layers kept."""
    given = config.to_dict()
    depth = next((given[name] for name in DEPTHS if isinstance(given.get(name), int)), None)
    changed: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, list):
            if depth and len(value) == depth:
                changed[name] = [value[index] for index in _kept(given, depth)]
        elif name in SIZES and (value is not None or name in NEEDED):
            changed[name] = type(value)(SIZES[name]) if isinstance(value, int | float) else SIZES[name]
        elif name in DEPTHS and isinstance(value, int):
            changed[name] = LAYERS
        elif name in KV_HEADS and (isinstance(value, int) or name == "num_key_value_heads"):
            changed[name] = 4 if value in (None, given.get("num_attention_heads", given.get("n_head"))) else 2
        elif isinstance(getattr(config, name, None), transformers.PreTrainedConfig):
            changed[name] = shrunk(getattr(config, name))
    return changed


def _kept(given: dict[str, Any], depth: int) -> list[int]:
    """Layers of each kind that there is, as many as are kept."""
    kinds = given.get("layer_types") or given.get("layers_block_type") or [0] * depth
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)][:LAYERS]
    others = [index for index in range(depth) if index not in firsts]
    return sorted([*firsts, *others[: LAYERS - len(firsts)]])


def build(model_type: str) -> Any:
    """A tiny random model whose attention is peaked, so that a missing token shows."""
    default = AutoConfig.for_model(model_type)
    config = type(default)(**shrunk(default))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters are too many")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.9 * parameter.shape[-1] ** -0.5)
            elif "sink" in name:
                parameter.normal_()
    return model


IDS = torch.randint(3, 99, (2, TOKENS), generator=torch.Generator().manual_seed(7))
PIECES = [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, TURN)), (TURN, TOKENS)]


def told(model: Any, cache: Any, ids: torch.Tensor, pieces: Any = PIECES, mask: torch.Tensor | None = None) -> Any:
    """Logits of a text that is read in pieces; without a cache as one."""
    with torch.no_grad():
        if cache is None:
            return model(input_ids=ids, use_cache=False, **({} if mask is None else {"attention_mask": mask})).logits
        parts = []
        for start, stop in pieces:
            given = {} if mask is None else {"attention_mask": mask[:, :stop]}
            out = model(input_ids=ids[:, start:stop], use_cache=True, **{cache_name(model): cache}, **given)
            parts.append(out.logits)
    return torch.cat(parts, dim=1)


def _options(model: Any) -> list[dict[str, str]]:
    """The default, and what needs least of a model; H2O where its attention can be gathered."""
    ways = [{"policy": "streaming_llm", "allocator": "uniform"}, {"policy": "h2o", "allocator": "uniform"}, {}]
    return [options for options in ways if _is_served(model, options)] or ways[:1]


def _is_served(model: Any, options: dict[str, str]) -> bool:
    try:
        told(model, SqueezeCache(model, budget=100, **options), IDS[:1])
    except SqueezeError:
        return False
    return True


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    difference = (one - other).abs().max()
    return float("inf") if difference.isnan() else float(difference)


def explicit(model: Any, budgets: Any) -> torch.Tensor:
    """Logits of the first text where each decoded token sees the newest ``budgets[layer]`` tokens, by masks alone."""
    naive = copy.deepcopy(model)
    naive.set_attn_implementation("eager")
    pieces = [(at, at + 1) for at in range(PROMPT, TOKENS)]
    seen: set[int] = set()

    def narrow(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if "attention_mask" not in kwargs:
            raise LookupError("masks are not given by name")
        hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        for query, _ in pieces:
            hidden[query, : max(0, query - budgets[module.layer_idx] + 1)] = True
        lowest = torch.finfo(torch.float32).min
        bias = torch.zeros(TOKENS, TOKENS).masked_fill(hidden, lowest)[None, None]
        own = kwargs["attention_mask"]
        if own is not None:
            bias = torch.where(own if own.dtype == torch.bool else own == 0, bias, torch.full_like(bias, lowest))
            own = bias == 0 if own.dtype == torch.bool else bias
        else:
            own = bias
        seen.add(module.layer_idx)
        return args, {**kwargs, "attention_mask": own}

    for module in naive.modules():
        if "Attention" in type(module).__name__ and isinstance(getattr(module, "layer_idx", None), int):
            module.register_forward_pre_hook(narrow, with_kwargs=True)
    logits = told(naive, None, IDS[:1])
    if len(seen) < len(budgets):
        raise LookupError("not all layers were reached")
    return logits


def judge(model_type: str) -> dict[str, Any]:
    """What becomes of one type."""
    try:
        model = build(model_type)
        whole = told(model, None, IDS[:1])
        if not whole.isfinite().all():
            raise ValueError("its logits are not finite")
    except Exception as error:
        return {"result": "not built", "why": _line(error)}
    left = torch.ones_like(IDS)
    left[1, :5] = 0
    # Where a model's own cache and no cache differ (it may drop what a window of the config hides), one will do.
    own: dict[str, list[torch.Tensor]] = {"text": [whole], "padded": []}
    for name, ids, mask in (("text", IDS[:1], None), ("padded", IDS, left)):
        for kept in (True, False) if name == "padded" else (True,):
            try:
                cache = DynamicCache(config=model.config.get_text_config(decoder=True)) if kept else None
                logits = told(model, cache, ids, mask=mask)
                own[name].append(logits if mask is None else logits * mask[..., None])
            except Exception:  # the stock model does not do this
                continue

    def nearest(got: torch.Tensor, name: str) -> float:
        return min(apart(got, want) for want in own[name])

    found: dict[str, Any] = {}
    try:
        for options in _options(model):
            got = told(model, SqueezeCache(model, budget=100, **options), IDS[:1])
            found["text"] = max(found.get("text", 0.0), nearest(got, "text"))
            if own["padded"]:
                got = told(model, SqueezeCache(model, budget=100, **options), IDS, mask=left) * left[..., None]
                found["padded"] = max(found.get("padded", 0.0), nearest(got, "padded"))
        cache = SqueezeCache(model, budget=BUDGET, policy="sliding_window", allocator="uniform")
        got = told(model, cache, IDS[:1], [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, TOKENS))])
        budgets = cache.plans[0].budgets
        cache.detach()
        try:
            found["small"] = apart(got, explicit(model, budgets))
        except Exception as error:
            found["not held"] = f"a small budget: {_line(error)}"
    except SqueezeError as error:
        return {"result": "refused", "why": _line(error)}
    except Exception as error:
        return {"result": "crashed", "why": _line(error), **_rounded(found)}
    wrong = [name for name, value in found.items() if isinstance(value, float) and value > TOLERANCE]
    return {"result": "wrong" if wrong else "right", **_rounded(found)}


def _rounded(found: dict[str, Any]) -> dict[str, Any]:
    """Distances above the tolerance only: those of rounding differ from run to run."""
    return {
        name: f"{value:.2g}" if isinstance(value, float) else value
        for name, value in found.items()
        if not isinstance(value, float) or value > TOLERANCE
    }


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]


def _child(model_type: str, pipe: Any) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    pipe.send(judge(model_type))


def alone(model_type: str) -> dict[str, Any]:
    """In a process of its own: a type that hangs or dies takes nothing with it."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(model_type, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(SECONDS):
            return receiver.recv()
    except EOFError:
        pass
    finally:
        process.kill()
        process.join()
    return {"result": "crashed", "why": "its process died, or took too long"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="these only, shown and not recorded")
    wanted = parser.parse_args().types
    torch.set_num_threads(1)
    found = {}
    for model_type in wanted or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        found[model_type] = alone(model_type)
        print(model_type, *found[model_type].values(), flush=True)
    counts = {
        result: sum(one["result"] == result for one in found.values())
        for result in ("right", "refused", "wrong", "crashed", "not built")
    }
    print(counts)
    if not wanted:
        record = {"transformers": transformers.__version__, "counts": counts, "types": found}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if counts["wrong"] or counts["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
