"""Train the embedded model: ``make train-embedded`` (seeded, resumable, about an hour on two CPU cores).

The text is the standard library's own source plus generated recall. Long-range recall appears quickly in
short contexts and then carries over to longer ones, so the length doubles each time recall of *held-out*
names passes 0.9. Every held-out module and name stays out of training.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from data import Documents
from tokenizer import END_OF_TEXT, PAD, train_tokenizer

LENGTHS = (64, 128, 256, 512, 1024, 2048)
PASS = 0.9


def build_model(vocabulary: int, eos: int, pad: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=10,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


def optimizers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def weighted_loss(model: torch.nn.Module, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    losses = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum().clamp(min=1)


@torch.no_grad()
def recall_accuracy(model: torch.nn.Module, documents: Documents, length: int, rows: int = 24) -> float:
    """Share of questions answered exactly (teacher-forced argmax equals greedy decoding until a miss)."""
    right = total = 0
    model.eval()
    for _ in range(rows):
        tokens, weights = documents.recall(length, facts=min(6, max(2, length // 48)))
        device = next(model.parameters()).device
        ids = torch.tensor([tokens], device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            guess = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)[0]
        hit = (guess == ids[0, 1:]).tolist()
        answer = [w > 1 for w in weights[1:]]
        run: list[bool] = []
        for ok, inside in zip([*hit, False], [*answer, False], strict=True):
            if inside:
                run.append(ok)
            elif run:
                right += all(run)
                total += 1
                run = []
    model.train()
    return right / max(1, total)


@torch.no_grad()
def code_loss(model: torch.nn.Module, documents: Documents, length: int = 512, rows: int = 32) -> float:
    """Mean negative log-likelihood (nats per token) on plain code of held-out modules."""
    model.eval()
    tokens, weights = documents.batch(rows, length, recall_share=0.0)
    device = next(model.parameters()).device
    loss = weighted_loss(model, tokens.to(device), weights.to(device)).item()
    model.train()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/embedded"))
    parser.add_argument("--tokens", type=float, default=10.5e6, help="training tokens in all")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(args.out / "tokenizer.json"))
    eos, pad = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(PAD)
    model = build_model(tokenizer.get_vocab_size(), eos, pad).to(device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    optims = optimizers(model, args.lr)
    train = Documents(tokenizer, held_out=False, seed=args.seed)
    held_out = Documents(tokenizer, held_out=True, seed=args.seed + 1)
    steps = math.ceil(args.tokens / args.batch_tokens)
    state = {"step": 0, "stage": 0}
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        for optimizer, values in zip(optims, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        state, train.rng = saved["state"], saved["rng"]
        print(f"resumed at step {state['step']}", flush=True)
    forward = torch.compile(model, dynamic=False) if args.compile else model
    began, seen = time.time(), 0
    model.train()
    while state["step"] < steps:
        step = state["step"]
        left = (steps - step) / steps
        rate = args.lr * min(1.0, (step + 1) / 50, left / 0.3)
        for optimizer in optims:
            for group in optimizer.param_groups:
                group["lr"] = rate
        stage = state["stage"]
        if stage and train.rng.random() < 0.25:
            stage = train.rng.randrange(stage)
        length = LENGTHS[stage]
        rows = args.batch_tokens // length
        tokens, weights = train.batch(rows, length, recall_share=0.45, pair_share=0.4 if length <= 128 else 0.2)
        loss = weighted_loss(forward, tokens.to(device), weights.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optims:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state["step"] += 1
        seen += tokens.numel()
        if state["step"] % 100 == 0 or state["step"] == steps:
            length = LENGTHS[state["stage"]]
            accuracy = recall_accuracy(model, held_out, length)
            line = {
                "step": state["step"], "tokens": state["step"] * args.batch_tokens, "length": length,
                "loss": round(loss.item(), 3), "recall": round(accuracy, 3),
                "code_nll": round(code_loss(model, held_out, rows=8), 3),
                "tokens_per_s": round(seen / (time.time() - began)),
            }  # fmt: skip
            print(json.dumps(line), flush=True)
            if accuracy >= PASS and state["stage"] + 1 < len(LENGTHS):
                state["stage"] += 1
            torch.save(
                {
                    "model": model.state_dict(), "optimizers": [o.state_dict() for o in optims],
                    "state": state, "rng": train.rng,
                },
                checkpoint,
            )  # fmt: skip
    model.half().save_pretrained(args.out)


if __name__ == "__main__":
    main()
