"""``squeeze serve`` as a client sees it: completes, streams, chats, under load at the memory's limit, and ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from openai import OpenAI

from squeezeattention import BudgetPlan
from squeezeattention.embedded import FOLDER, load_embedded
from squeezeattention.engine import BlockPlan

from .conftest import BLOCK, assert_greedy, draw, told_by_masks
from .test_per_prompt import assert_told, prompts_of
from .test_probe import told_by_probe
from .test_slab import told_by_the_library

BUDGETS = [64, 256, 64, 64, 64, 64, 64, 128]
KEY = "secret"
BLOCKS = 140
LOAD_SECONDS = 120
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def squeeze(*words):
    return [sys.executable, "-c", "from squeezeattention.cli import main; main()", *map(str, words)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


@contextmanager
def serving(folder, *words, plan=None, environment=None):
    """A server of the embedded model: (process, url, log)."""
    (plan or BudgetPlan.from_budgets(BUDGETS)).save(folder / "plan.json")
    (folder / "chat.jinja").write_text(TEMPLATE)
    port, log = free_port(), folder / "log"
    ours = () if "--" not in words else words[: words.index("--")]
    command = squeeze(
        "serve", "embedded", "--plan", folder / "plan.json", "--block-size", BLOCK, "--port", port, "--api-key", KEY,
        *ours, "--", "--dtype", "float32", "--enforce-eager", "--max-model-len", 512, "--num-gpu-blocks-override",
        BLOCKS, "--chat-template", folder / "chat.jinja", "--max-num-seqs", 32, *words[len(ours) + 1 :],
    )  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(environment or {})})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                get(f"{url}/health")
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text())
        yield process, url, log
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("serve")) as started:
        yield started


@pytest.fixture(scope="module")
def client(server):
    return OpenAI(base_url=f"{server[1]}/v1", api_key=KEY)


def complete(client, prompt, tokens=20, **how):
    return client.completions.create(
        model="embedded", prompt=prompt, max_tokens=tokens, temperature=0.0,
        extra_body={"ignore_eos": True, "return_token_ids": True}, **how
    )  # fmt: skip


def told(client, prompt, tokens):
    return complete(client, prompt, tokens).choices[0].token_ids


def test_a_client_completes_streams_and_chats(client):
    text = "import os\n\ndef read(path):\n    with open(path) as"
    whole = complete(client, text).choices[0].text
    assert whole
    assert "".join(part.choices[0].text for part in complete(client, text, stream=True)) == whole
    chat = client.chat.completions.create(
        model="embedded", messages=[{"role": "user", "content": "def main():"}], max_tokens=8, temperature=0.0
    )
    assert chat.choices[0].finish_reason in ("length", "stop")


def test_a_wrong_key_is_turned_away(server):
    from openai import AuthenticationError

    with pytest.raises(AuthenticationError):
        complete(OpenAI(base_url=f"{server[1]}/v1", api_key="other"), "x")


def metric(url, name):
    lines = [line for line in get(f"{url}/metrics").splitlines() if line.startswith(name)]
    return [float(line.rsplit(" ", 1)[1]) for line in lines]


def planned_layers():
    plan = BlockPlan.of(BudgetPlan.from_budgets(BUDGETS), BLOCK, sinks=4)
    return [(layer.sinks, layer.recent) for layer in plan.layers]


def test_tokens_equal_explicit_masks(client):
    """Prompts of mixed lengths at once; and it is not what the full cache says."""
    model = load_embedded()[0].float()
    layers = planned_layers()
    prompts = draw([5, 33, 128, 201, 300, 350], seed=9, vocabulary=4000)
    with ThreadPoolExecutor(len(prompts)) as pool:
        replies = list(pool.map(lambda prompt: told(client, prompt, 100), prompts))
    differs = 0
    for prompt, reply in zip(prompts, replies, strict=True):
        assert len(reply) == 100
        assert_greedy(told_by_masks(model, prompt, reply, layers, windowed=False), reply)
        full = told_by_masks(model, prompt, reply, [(0, 10**6)] * len(layers), windowed=False)
        differs += (full.argmax(-1) != torch.tensor(reply)).any().item()
    assert differs >= 2, "the plan changes nothing: the comparison proves nothing"


@pytest.mark.processes
def test_many_clients_at_the_limit_of_memory(server, client):
    """For minutes: no error, no mixed answer, no block left over."""
    prompts = draw([40 + 9 * n for n in range(32)], seed=8, vocabulary=4000)
    alone = [told(client, prompt, 60) for prompt in prompts]
    seen, stop, ends = [], threading.Event(), time.monotonic() + LOAD_SECONDS

    def watch():
        while not stop.wait(0.2):
            seen.append(max(metric(server[1], "squeeze_blocks_held"), default=0))

    def keep_asking(first):
        """A client of its own, that asks for one prompt after another; its answers that differ, and their number."""
        own, wrong, asked = OpenAI(base_url=f"{server[1]}/v1", api_key=KEY), 0, 0
        while time.monotonic() < ends or not asked:
            index = (first + 7 * asked) % len(prompts)
            wrong += told(own, prompts[index], 60) != alone[index]
            asked += 1
        return wrong, asked

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(32) as pool:
            wrong, asked = zip(*pool.map(keep_asking, range(32)), strict=True)
    finally:
        stop.set()
        watcher.join()
    assert sum(wrong) == 0
    assert sum(asked) >= 64
    assert max(seen) > 0.8 * BLOCKS
    for _ in range(50):
        if metric(server[1], "squeeze_blocks_held") == [0.0]:
            break
        complete(client, "x", 1)  # figures are of the last step
        time.sleep(0.1)
    assert metric(server[1], "vllm:num_requests_running") == [0.0]
    assert sorted(metric(server[1], "squeeze_layer_budget_tokens")) == sorted(map(float, BUDGETS))


def test_it_ends_when_it_is_told_to(server):
    process, url, log = server
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, log.read_text()
    with pytest.raises((urllib.error.URLError, OSError)):
        get(f"{url}/health")


@pytest.mark.processes
def test_two_engines_divide_the_total_for_each_prompt(tmp_path):
    """Data parallel, with plans per prompt, over the wire: each answer is that of its own prompt's masks."""
    words = ("--per-prompt", "--", "--data-parallel-size", 2)
    with serving(tmp_path, *words, environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1"}) as (_, url, _log):
        client, model = OpenAI(base_url=f"{url}/v1", api_key=KEY), load_embedded()[0].float()
        prompts = prompts_of([150, 300, 33, 260, 190, 240], seed=2)
        with ThreadPoolExecutor(len(prompts)) as pool:
            replies = list(pool.map(lambda prompt: told(client, prompt, 100), prompts))
        engines = {line.split('engine="')[1][0] for line in get(f"{url}/metrics").splitlines() if "squeeze_" in line
                   and 'engine="' in line}  # fmt: skip
    given = {"plan": BudgetPlan.from_budgets(BUDGETS).to_dict(), "per_prompt": True}
    assert_told(model, prompts, replies, given, also=[planned_layers()])  # this model's layers hardly change places
    assert engines == {"0", "1"}


@pytest.mark.processes
def test_single_tokens_over_the_wire(tmp_path):
    """The slab design with H2O, held against the library's own cache."""
    plan = replace(BudgetPlan.from_budgets([BLOCK] * len(BUDGETS)), policy="h2o")
    with serving(tmp_path, plan=plan) as (_, url, _log):
        client = OpenAI(base_url=f"{url}/v1", api_key=KEY)
        prompts = draw([5, 33, 128, 201, 300], seed=10, vocabulary=4000)
        with ThreadPoolExecutor(len(prompts)) as pool:
            replies = list(pool.map(lambda prompt: told(client, prompt, 60), prompts))
    model, differs = load_embedded()[0].float(), 0
    for prompt, reply in zip(prompts, replies, strict=True):
        assert_greedy(told_by_the_library(model, "h2o", prompt, reply, list(plan.budgets)), reply)
        full = told_by_the_library(model, "h2o", prompt, reply, [512] * len(BUDGETS))
        differs += full.argmax(-1).tolist() != reply
    assert differs >= 2, "the plan changes nothing: the comparison proves nothing"


def test_heads_of_different_budgets_over_the_wire(tmp_path):
    """Held against the library's own cache; a client that hangs up leaves nothing behind."""
    heads = [[2 * BLOCK - 8 * layer, 8 * layer] if layer else [150, 42] for layer in range(len(BUDGETS))]
    plan = replace(BudgetPlan.from_budgets(heads), policy="h2o")
    with serving(tmp_path, plan=plan) as (_, url, _log):
        client = OpenAI(base_url=f"{url}/v1", api_key=KEY)
        prompts = draw([5, 33, 128, 300], seed=16, vocabulary=4000)
        stream = complete(client, prompts[2], 150, stream=True)
        next(iter(stream))
        stream.close()
        with ThreadPoolExecutor(len(prompts)) as pool:
            replies = list(pool.map(lambda prompt: told(client, prompt, 60), prompts))
        for _ in range(50):
            if metric(url, "squeeze_blocks_held") == [0.0]:
                break
            complete(client, "x", 1)  # figures are of the last step
            time.sleep(0.1)
        assert metric(url, "vllm:num_requests_running") == [0.0]
        assert metric(url, "squeeze_blocks_held") == [0.0]
        assert metric(url, "squeeze_blocks_per_sequence") == [sum(map(sum, heads)) / (2 * BLOCK)]
    model = load_embedded()[0].float()
    for prompt, reply in zip(prompts, replies, strict=True):
        assert_greedy(told_by_the_library(model, "h2o", prompt, reply, heads), reply)
    equal = told_by_the_library(model, "h2o", prompts[-1], replies[-1], list(plan.budgets))
    assert equal.argmax(-1).tolist() != replies[-1], "equal heads say the same: the comparison proves nothing"


@pytest.mark.processes
def test_budgets_of_heads_of_each_prompt_over_the_wire(tmp_path):
    """Held against the library's own cache with allocator="probe"; prompts begin alike, and are not read twice."""
    base = 2 * BLOCK
    plan = replace(BudgetPlan.from_budgets([base] * len(BUDGETS)), policy="tova")
    words = ("--per-prompt", "--allocator", "probe", "--", "--num-gpu-blocks-override", 200)
    with serving(tmp_path, *words, plan=plan) as (_, url, _log):
        client = OpenAI(base_url=f"{url}/v1", api_key=KEY)
        stem, *tails = draw([150, 5, 60, 128], seed=18, vocabulary=4000)
        prompts = [stem + tail for tail in tails]
        told(client, stem, 1)
        with ThreadPoolExecutor(len(prompts)) as pool:
            replies = list(pool.map(lambda prompt: told(client, prompt, 60), prompts))
        assert metric(url, "squeeze_blocks_per_sequence") == [len(BUDGETS) * base / BLOCK]
        assert metric(url, "vllm:prefix_cache_hits_total") == [128.0 * 3]
    model, equal = load_embedded()[0].float(), [base] * len(BUDGETS)
    for prompt, reply in zip(prompts, replies, strict=True):
        assert_greedy(told_by_probe(model, "tova", prompt, reply, base)[0], reply)
    differs = [told_by_the_library(model, "tova", p, r, equal).argmax(-1).tolist() != r
               for p, r in zip(prompts, replies, strict=True)]  # fmt: skip
    assert any(differs), "equal heads say the same: the comparison proves nothing"


def refused(*words):
    run = subprocess.run(squeeze("serve", *words), capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 2, (run.stdout, run.stderr)
    assert run.stdout == ""
    assert len(run.stderr.strip().splitlines()) == 1
    return run.stderr


@pytest.mark.processes
def test_bad_plans_stop_the_command(tmp_path):
    good, short, damaged = tmp_path / "good.json", tmp_path / "short.json", tmp_path / "damaged.json"
    BudgetPlan.from_budgets(BUDGETS).save(good)
    BudgetPlan.from_budgets(BUDGETS[:7]).save(short)
    damaged.write_text(good.read_text()[:40])
    assert "none.json" in refused("embedded", "--plan", tmp_path / "none.json")
    assert "damaged.json" in refused("embedded", "--plan", damaged)
    assert "7 layers, but the model has 8" in refused("embedded", "--plan", short)
    assert "less than a block of 128" in refused("embedded", "--plan", good, "--block-size", 128)
    assert "prefill must be one of" in refused("embedded", "--plan", good, "--prefill", "half")
    assert "there is no such folder" in refused("./nowhere", "--plan", good)
    assert "give it before --" in refused("embedded", "--plan", good, "--", "--port", "1")


def test_bad_plans_stop_the_engine(engine, folder, monkeypatch):
    from squeezeattention.engine import carried
    from squeezeattention.errors import BudgetError, ConfigError, PlanError, UnsupportedFeatureError

    plan = BudgetPlan.from_budgets([64] * 6).to_dict()
    other = BudgetPlan.from_budgets([64] * 6)
    other = BudgetPlan(**{**other.__dict__, "model": "llama-6x8x128"}).to_dict()
    for given, options, error, words in (
        ("none.json", {}, PlanError, "none.json"),
        ({"plan": BudgetPlan.from_budgets([64] * 5).to_dict()}, {}, PlanError, "5 layers, but the model has 6"),
        ({"plan": BudgetPlan.from_budgets([64] * 5 + [31]).to_dict()}, {}, BudgetError, "less than a block"),
        ({"plan": plan, "policy": "h2o", "design": "compact"}, {}, UnsupportedFeatureError, "ranks single tokens"),
        ({"plan": plan, "policy": "h2o"}, {"enable_prefix_caching": True}, UnsupportedFeatureError, "prefix caching"),
        ({"plan": other}, {}, PlanError, "belongs to the model 'llama-6x8x128'"),
        ({"plan": plan, "colour": "red"}, {}, ConfigError, "colour"),
        ({"plan": plan}, {"disable_hybrid_kv_cache_manager": True}, UnsupportedFeatureError, "hybrid"),
    ):
        with pytest.raises(error, match=words):
            engine(given, **options)
    monkeypatch.setattr(carried, "installed", lambda: "0.99.1+cpu")
    with pytest.raises(UnsupportedFeatureError, match=r"vLLM 0\.99\.1\+cpu is not known .* from 0\.32\.0 to below"):
        engine({"plan": plan})


def test_an_engine_that_cannot_be_hooked_refuses_plans_only(engine, monkeypatch):
    from vllm.config import VllmConfig

    from squeezeattention.engine import hooks
    from squeezeattention.errors import UnsupportedFeatureError

    def install():
        raise KeyError("get_kv_cache_spec")

    monkeypatch.setattr(hooks, "_install", install)
    monkeypatch.setattr(VllmConfig, "__post_init__", VllmConfig.__post_init__)  # put back afterwards
    hooks.register()
    with pytest.raises(UnsupportedFeatureError, match="cannot carry a squeeze plan: it has no 'get_kv_cache_spec'"):
        engine({"plan": BudgetPlan.from_budgets([64] * 6).to_dict()})
    engine()


def test_versions():
    from squeezeattention.engine.carried import check_version
    from squeezeattention.errors import UnsupportedFeatureError

    for fine in ("0.32.0", "0.32.1", "0.32.0+cpu", "0.32.5rc1"):
        check_version(fine)
    for other in ("0.31.9", "0.33.0", "1.0.0", "0.33.0rc1"):
        with pytest.raises(UnsupportedFeatureError):
            check_version(other)


def test_the_plan_is_of_the_embedded_model():
    assert json.loads((Path(FOLDER) / "config.json").read_text())["num_hidden_layers"] == len(BUDGETS)
