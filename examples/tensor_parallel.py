"""A model too large for one device, without vLLM: tensor parallel in transformers, with the full per-prompt method.

``torchrun --nproc_per_node 2 examples/tensor_parallel.py MODEL -p "..."``. Each process holds a part of every layer's
heads, and of their cache. What the signal measures is the residual stream, which is whole in every process, so all of
them come to the same plan; it is checked here, not assumed.
"""

from __future__ import annotations

import argparse
import json
import os

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig

from squeezeattention import SqueezeCache


def divided() -> dict[str, object]:
    """How ``from_pretrained`` is told to divide a model among the processes; older releases take the plan itself."""
    fields = getattr(DistributedConfig, "__dataclass_fields__", {})
    return {"distributed_config": DistributedConfig(tp_plan="auto")} if "tp_plan" in fields else {"tp_plan": "auto"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("-p", "--prompt", default="")
    parser.add_argument("--tokens", help="the prompt as token ids, separated by commas")
    parser.add_argument("--budget", default="0.2")
    parser.add_argument("--policy", default="h2o")
    parser.add_argument("--allocator", default="squeeze")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype, **divided())
    if args.tokens:
        ids = torch.tensor([[int(token) for token in args.tokens.split(",")]], device=model.device)
    else:
        ids = AutoTokenizer.from_pretrained(args.model)(args.prompt, return_tensors="pt").input_ids.to(model.device)
    cache = SqueezeCache(model, args.budget, args.policy, args.allocator)
    out = model.generate(
        ids, past_key_values=cache, max_new_tokens=args.max_new_tokens, do_sample=False, pad_token_id=0
    )
    found = {"tokens": out[0, ids.shape[1] :].tolist(), "budgets": list(cache.plan.budgets)}
    everyone: list[dict[str, list[int]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, found)
    if any(other != found for other in everyone):
        raise SystemExit(f"the processes disagree: {everyone}")
    if dist.get_rank() == 0:
        found["bytes_of_this_process"] = [cache.memory().bytes]
        print(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
    dist.barrier()  # none leaves while another is still talking
    dist.destroy_process_group()
