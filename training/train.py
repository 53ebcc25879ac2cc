"""Train the embedded model: ``make train-embedded`` (seeded, resumable).

The text is the standard library's own source plus generated text in which something has to be looked up. Looking things
up is learned in short rows first and then carries over, so the length doubles each time the answers about *held-out*
names are mostly right. Every held-out module and name stays out of training. Other depths and widths
(``--layers``, ``--width``) give other models of the same recipe.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from attention import blocked
from documents import Documents
from muon import Muon
from retrieval import ANSWER, FIRST, LIGHT
from tokenizer import END_OF_TEXT, PAD, train_tokenizer

LENGTHS = (64, 128, 256, 512, 1024, 2048)
PASS = 0.7  # share of held-out answers that must be right before rows become longer
#: With 10,000, near-alike keys more than 1,500 tokens away were lost after 23 million tokens in rows of 2,048.
ROPE_THETA = 25_000.0
LOOK_EVERY, SAVE_EVERY = 200, 200  # steps
LOOKED_AT = ("needles", "pairs", "mirrored", "handed", "counted", "codes")  # kinds of documents
SAMPLED = 4  # one in so many tokens of little weight is scored


def build_model(
    vocabulary: int, layers: int, width: int, eos: int, pad: int, theta: float = ROPE_THETA
) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=max(1, width // 64),
        head_dim=32,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=True,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    AttentionInterface.register("blocked", blocked)
    config._attn_implementation = "blocked" if not torch.cuda.is_available() else "sdpa"
    return LlamaForCausalLM(config)


@torch.no_grad()
def grow(model: LlamaForCausalLM, smaller: LlamaForCausalLM) -> None:
    """Begin as ``smaller`` does: its layers keep their order, the layers between them add nothing to the stream."""
    few, many = smaller.model.layers, model.model.layers
    places = [index * len(many) // len(few) for index in range(len(few))]
    for layer in many:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    for place, layer in zip(places, few, strict=True):
        many[place].load_state_dict(layer.state_dict())
    model.model.embed_tokens.load_state_dict(smaller.model.embed_tokens.state_dict())
    model.model.norm.load_state_dict(smaller.model.norm.state_dict())


def optimizers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [Muon(matrices, lr), torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is arithmetic there; processors that emulate it are faster in fp32."""
    return device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)


def weighted_loss(model: LlamaForCausalLM, tokens: torch.Tensor, weights: torch.Tensor, phase: int = 0) -> torch.Tensor:
    """Mean loss of ``[B, T + 1]`` tokens.

    Of those that weigh little every fourth is scored, four times as heavily: most of the time would go into the
    vocabulary's logits for text that nothing is to be learned from.
    """
    weights = weights[:, 1:].flatten()
    light = (weights > 0) & (weights <= LIGHT)
    sampled = torch.arange(len(weights), device=weights.device) % SAMPLED == phase % SAMPLED
    weights = torch.where(light, weights * SAMPLED * sampled, weights)
    scored = weights.nonzero().squeeze(1)
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=has_bf16(tokens.device)):
        hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
        logits = model.lm_head(hidden[scored])
    losses = F.cross_entropy(logits.float(), tokens[:, 1:].flatten()[scored], reduction="none")
    return (losses * weights[scored]).sum() / weights.sum().clamp(min=1)


def carry_over(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Weights of the model in ``folder``; where its tokenizer is another, each token of the new one begins as the mean
    of its pieces in the old one: what the layers do with a name is kept, what it is spelled with is not."""
    known = Tokenizer.from_file(str(folder / "tokenizer.json"))
    state = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    if known.get_vocab() != tokenizer.get_vocab():
        old = state["model.embed_tokens.weight"]
        new = torch.empty(tokenizer.get_vocab_size(), old.shape[1])
        special = {tokenizer.token_to_id(token): known.token_to_id(token) for token in (END_OF_TEXT, PAD)}
        for index in range(len(new)):
            pieces = [special[index]] if index in special else known.encode(tokenizer.decode([index])).ids
            new[index] = old[pieces].mean(0)
        state["model.embed_tokens.weight"] = state["lm_head.weight"] = new
    model.load_state_dict(state)


@torch.no_grad()
def answered(model: LlamaForCausalLM, documents: Documents, kind: str, length: int) -> float:
    """Share of answers that are right in every token (teacher-forced argmax equals greedy decoding until a miss)."""
    right = total = 0
    device = next(model.parameters()).device
    model.eval()
    for _ in range(16 if length <= 512 else 4):  # a long row has many answers
        tokens, weights = documents.row(kind, length)
        ids = torch.tensor([tokens], device=device)
        hits = (model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)[0] == ids[0, 1:]).tolist()
        run: list[bool] = []
        for hit, weight in zip([*hits, False], [*weights[1:], 0.0], strict=True):
            if run and weight != ANSWER:
                right, total, run = right + all(run), total + 1, []
            if weight in (FIRST, ANSWER):
                run.append(hit)
    model.train()
    return right / max(1, total)


@torch.no_grad()
def code_loss(model: LlamaForCausalLM, documents: Documents, length: int = 512, rows: int = 16) -> float:
    """Mean negative log-likelihood (nats per token) on plain code of held-out modules."""
    model.eval()
    found = [documents.row("code", length) for _ in range(rows)]
    device = next(model.parameters()).device
    tokens = torch.tensor([tokens for tokens, _ in found], device=device)
    loss = weighted_loss(model, tokens, torch.ones_like(tokens, dtype=torch.float32)).item()
    model.train()
    return loss


def rate_at(state: dict[str, int], tokens: float, lr: float, fall: float) -> float:
    """Warm-up over 50 steps, a plateau, and a fall to zero over the last share ``fall`` of the tokens."""
    left = max(0.0, tokens - state["tokens"])
    return lr * min(1.0, (state["step"] + 1) / 50, left / (fall * tokens) if fall else 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/embedded"))
    parser.add_argument(
        "--start", type=Path, help="a trained model to go on from, with its tokenizer; rows are long at once"
    )
    parser.add_argument(
        "--embeddings", type=Path, help="a trained model of this width whose tokens' embeddings, alone, are taken over"
    )
    parser.add_argument(
        "--grow",
        type=Path,
        help="a trained model of fewer layers: its layers, spread, among new ones that add nothing yet",
    )
    parser.add_argument(
        "--retokenize", action="store_true", help="... but with a tokenizer trained anew, rows short first"
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--theta", type=float, default=ROPE_THETA, help="base of the rotary position embedding")
    parser.add_argument("--tokens", type=float, default=30e6, help="training tokens in all")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], choices=LENGTHS, help="tokens of the longest rows")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--fall", type=float, default=0.25, help="share of the tokens over which the rate falls to 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    written = args.out / "tokenizer.json"
    kept = args.start if args.start and not args.retokenize else None
    source = kept or args.grow or args.embeddings
    known = written if written.exists() else source and source / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(known)) if known else train_tokenizer()
    tokenizer.save(str(written))
    eos, pad = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(PAD)
    model = build_model(tokenizer.get_vocab_size(), args.layers, args.width, eos, pad, args.theta).to(device)
    if args.start:
        carry_over(model, tokenizer, args.start)
    elif args.grow:
        grow(model, LlamaForCausalLM.from_pretrained(args.grow, dtype=torch.float32))
    elif args.embeddings:
        taken = LlamaForCausalLM.from_pretrained(args.embeddings, dtype=torch.float32).model.embed_tokens.weight
        model.model.embed_tokens.weight.data.copy_(taken.data)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    optims = optimizers(model, args.lr)
    train = Documents(tokenizer, held_out=False, seed=args.seed)
    last = LENGTHS.index(args.longest)
    state = {"step": 0, "stage": last if kept or args.grow else 0, "tokens": 0}
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        for optimizer, values in zip(optims, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        state, train.rng = saved["state"], saved["rng"]
        state["stage"] = min(state["stage"], last)  # a run may go on with shorter rows
        print(f"resumed at step {state['step']}", flush=True)
    if args.compile:
        model.model.compile(dynamic=False)
    began, seen = time.time(), 0
    model.train()
    while state["tokens"] < args.tokens:
        for optimizer in optims:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(state, args.tokens, args.lr, args.fall)
        stage = state["stage"]
        if stage and train.rng.random() < 0.4:
            stage = max(train.rng.randrange(stage), train.rng.randrange(stage))
        length = LENGTHS[stage]
        # Short rows are learned by the number of steps, long ones by the number of tokens.
        rows = args.batch_tokens // length // (2 if length <= 256 else 1)
        tokens, weights = train.batch(max(1, rows), length)
        loss = weighted_loss(model, tokens.to(device), weights.to(device), state["step"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optims:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state["step"] += 1
        state["tokens"] += weights.numel() - len(weights)
        seen += weights.numel() - len(weights)
        if state["step"] % LOOK_EVERY == 0 or state["tokens"] >= args.tokens:
            # Every look draws its own text, the same whether the run was resumed or not.
            held_out = Documents.again(tokenizer, seed=state["step"])
            found = {kind: answered(model, held_out, kind, LENGTHS[state["stage"]]) for kind in LOOKED_AT}
            report = {**state, "length": LENGTHS[state["stage"]], "loss": loss.item(), **found,
                      "code": code_loss(model, held_out), "per_s": seen / (time.time() - began)}  # fmt: skip
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in report.items()}), flush=True)
            if found["needles"] >= PASS and state["stage"] < last:
                state["stage"] += 1
        if state["step"] % SAVE_EVERY == 0 or state["tokens"] >= args.tokens:
            partial = checkpoint.with_suffix(".partial")
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optims],
                    "state": state,
                    "rng": train.rng,
                },
                partial,
            )
            partial.replace(checkpoint)  # a kill while saving costs nothing
    model.half().save_pretrained(args.out)
    PreTrainedTokenizerFast(  # so that the folder can be loaded by its path
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=PAD, padding_side="left"
    ).save_pretrained(args.out)


if __name__ == "__main__":
    main()
