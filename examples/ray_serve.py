"""Replicas of a model behind one address, requests gathered into batches: Ray Serve (``pip install "ray[serve]"``).

``python examples/ray_serve.py MODEL --replicas 2 --budget 512`` and then
``curl -d '{"prompt": "def area("}' http://127.0.0.1:8000/``. A batch has one plan, from all of its prompts.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve
from starlette.requests import Request

from squeezeattention import squeeze
from squeezeattention.cli.inputs import load_model


@serve.deployment
class Generator:
    """One replica: a model whose ``generate`` calls are squeezed."""

    def __init__(self, model: str, budget: str, policy: str, allocator: str, new_tokens: int) -> None:
        self.model, self.tokenizer = load_model(model)
        self.handle = squeeze(self.model, budget=budget, policy=policy, allocator=allocator)
        self.new_tokens = new_tokens

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.05)
    async def generate(self, prompts: list[str]) -> list[str]:
        given = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(self.model.device)
        given.pop("token_type_ids", None)
        out = self.model.generate(**given, max_new_tokens=self.new_tokens, do_sample=False)
        return self.tokenizer.batch_decode(out[:, given.input_ids.shape[1] :], skip_special_tokens=True)

    async def __call__(self, request: Request) -> dict[str, str]:
        return {"text": await self.generate((await request.json())["prompt"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--budget", default="512")
    parser.add_argument("--policy", default="h2o")
    parser.add_argument("--allocator", default="squeeze")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    replica = Generator.options(num_replicas=args.replicas).bind(
        args.model, args.budget, args.policy, args.allocator, args.max_new_tokens
    )
    serve.run(replica)
    print(f"ready at http://127.0.0.1:{args.port}/", flush=True)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        serve.shutdown()


if __name__ == "__main__":
    main()
