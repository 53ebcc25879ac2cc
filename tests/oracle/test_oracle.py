"""Measured losses of layers: exact against the reference, and the rules that follow from them."""

import json

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from squeezeattention import BudgetPlan, SqueezeCache
from squeezeattention.allocators import Scaled, name_or_plan
from squeezeattention.allocators.measured import Measured
from squeezeattention.cli.app import app
from squeezeattention.embedded import load_embedded
from squeezeattention.errors import ConfigError, EvaluationError, PlanError
from squeezeattention.evaluation import Settings, run
from squeezeattention.evaluation.folder import read_rows
from squeezeattention.hf.layout import inspect_model
from squeezeattention.oracle import Case, case_of, measure_layers, rank_signals, reply_losses, shown_by
from squeezeattention.plan import build_plan
from squeezeattention.policies import resolve_policy
from squeezeattention.tasks import resolve_task
from squeezeattention.testing import NaiveReference, tiny_model

POLICIES = ["sliding_window", "streaming_llm", "h2o"]


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, 101, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


CASES = [Case(ids(37, 1), [(ids(3, 2), ids(4, 3)), (ids(1, 4), ids(7, 5))]), Case(ids(29, 6), [(ids(2, 7), ids(3, 8))])]


@pytest.fixture
def model():
    return tiny_model("llama")


def silence(model, layer: int) -> None:
    """Take a layer's attention out of the model, nearly: what its cache holds is worth nothing."""
    with torch.no_grad():
        model.model.layers[layer].self_attn.o_proj.weight.mul_(1e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("budgets", [(9, 30, 12, 60), (60, 60, 60, 60)])
def test_loss_is_that_of_the_reference(model, policy, budgets):
    """Each exchange by itself, in float64, with explicit keep-masks."""
    windows = inspect_model(model).windows
    for case in CASES:
        losses = []
        for asked, reply in case.exchanges:
            logits = NaiveReference(model, policy, windows, 2).run(case.context, budgets, (asked + reply)[:-1])
            losses.append(F.cross_entropy(logits[-len(reply) :], torch.tensor(reply), reduction="none"))
        got = reply_losses(model, case, resolve_policy(policy), budgets)
        assert got == pytest.approx(torch.cat(losses).mean().item(), abs=1e-4)


def test_silent_layers_are_cut_first_and_cost_nothing(model):
    for layer in (1, 2):
        silence(model, layer)
    found = measure_layers(model, CASES, resolve_policy("streaming_llm"), n_layers=4, keep=8)
    assert set(found.order[:2]) == {1, 2}
    assert sorted(found.order) == [0, 1, 2, 3]
    for layer in (1, 2):
        assert found.alone[layer] == pytest.approx(found.full, abs=1e-4)
    assert found.greedy[0] == found.alone[found.order[0]]
    assert found.greedy[1] == pytest.approx(found.full, abs=1e-4)
    assert abs(found.added[0]) > 1e-3
    assert len(found.greedy) == 4
    assert all(len(losses) == len(CASES) for losses in (found.full, *found.alone, *found.greedy))


def test_without_greedy_the_order_is_that_of_the_losses_alone(model):
    told = []
    found = measure_layers(
        model, CASES[:1], resolve_policy("h2o"), n_layers=4, keep=8, greedy=False,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    alone = [losses[0] for losses in found.alone]
    assert [alone[layer] for layer in found.order] == sorted(alone)
    everything = reply_losses(model, CASES[0], resolve_policy("h2o"), [8] * 4)
    assert found.greedy[-1] == pytest.approx([everything], abs=1e-6)
    assert told == [(count, 8) for count in range(1, 9)]


@pytest.mark.parametrize("policy", ["streaming_llm", "h2o", "snapkv", "kvzip"])
def test_each_context_is_read_once(model, policy):
    """However many layers are cut; what a policy has repeated is repeated once. Losses are those of fresh caches."""
    passes = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: passes.append(out.shape[1]))
    chosen = resolve_policy(policy)
    found = measure_layers(model, CASES, chosen, n_layers=4, keep=10)
    lengths = [len(case.context) for case in CASES]
    assert [count for count in passes if count in lengths] == lengths
    assert len([count for count in passes if count > 2]) <= 2 * len(CASES)  # two tokens show where windows are
    for case, losses in zip(CASES, zip(*found.alone, strict=True), strict=True):
        most = len(case.context) + case.longest
        for layer, loss in enumerate(losses):
            want = []
            for asked, reply in case.exchanges:
                cache = SqueezeCache(model, policy=chosen, allocator=[10 if i == layer else most for i in range(4)])
                with torch.no_grad():
                    model(input_ids=torch.tensor([case.context]), past_key_values=cache)
                    rows = [model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[:, 0]
                            for token in (asked + reply)[:-1]]  # fmt: skip
                want.append(F.cross_entropy(torch.cat(rows)[-len(reply) :], torch.tensor(reply), reduction="none"))
            assert loss == pytest.approx(torch.cat(want).mean().item(), abs=1e-4)


def test_measuring_leaves_the_model_as_it_was(model):
    text = torch.tensor([ids(30, 9)])
    with torch.no_grad():
        before = model(input_ids=text).logits
        measure_layers(model, CASES[:1], resolve_policy("h2o"), n_layers=4, keep=8, greedy=False)
        rank_signals(model, CASES[:1], resolve_policy("h2o"), 8, [0.0] * 4, range(4), signals=["cosine"])
        assert torch.equal(model(input_ids=text).logits, before)


def test_what_cannot_be_measured_is_refused(model):
    with pytest.raises(ConfigError, match="at least one case"):
        measure_layers(model, [], resolve_policy("h2o"), n_layers=4)
    with pytest.raises(ConfigError, match="needs at least"):
        measure_layers(model, CASES, resolve_policy("streaming_llm"), n_layers=4, keep=1)


def test_signals_are_ranked_by_how_they_order_the_layers(model):
    silence(model, 2)
    found = rank_signals(
        model, CASES, resolve_policy("streaming_llm"), 8, losses=[3.0, 2.0, 0.0, 1.0], order=[2, 3, 1, 0]
    )
    by_name = {rank.signal: rank for rank in found}
    cosine = by_name["cosine"].signal_values
    assert cosine[2] == pytest.approx(1.0, abs=1e-5)
    assert max(cosine) == cosine[2]
    ranks = [rank.alone for rank in found if rank.alone is not None]
    assert ranks == sorted(ranks, reverse=True)
    for rank in found:  # losses and order say the same here
        assert rank.alone == rank.greedy


def test_signals_are_read_together(model):
    """One reading of each context; each signal says what it says alone."""
    passes = []
    policy = resolve_policy("h2o")
    chosen = {"losses": [3.0, 2.0, 0.0, 1.0], "order": [2, 3, 1, 0]}
    alone = {}
    for name in shown_by(policy):
        [rank] = rank_signals(model, CASES, policy, 8, signals=[name], **chosen)
        alone[name] = rank.signal_values
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: passes.append(out.shape[1]))
    found = rank_signals(model, CASES, policy, 8, **chosen)
    assert {rank.signal: rank.signal_values for rank in found} == alone
    assert [passes.count(len(case.context)) for case in CASES] == [1, 1]


def test_cases_of_samples():
    _, tokenizer = load_embedded()

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    sample = resolve_task("recall").sample(count, 300, 0, 0)
    case = case_of(sample, tokenizer, questions=2)
    assert tokenizer.decode(case.context) == sample.context
    assert [tokenizer.decode(reply) for _, reply in case.exchanges] == [q.reply for q in sample.questions[:2]]
    code = resolve_task("code").sample(count, 300, 0, 0)
    case = case_of(code, tokenizer)
    [(asked, reply)] = case.exchanges
    assert len(asked) == 1
    assert tokenizer.decode(case.context + asked) == code.context
    assert tokenizer.decode(reply) == code.continuation


class TestMeasured:
    RULE = Measured(alone=(0.1, 2.0, 0.0, -0.1), order=(3, 2, 0, 1))

    def budgets(self, rule, base):
        return list(build_plan(rule, signal_values=None, base_budget=base, caps=[100] * 4, floor=4).budgets)

    def test_greedy_fills_one_layer_after_another(self):
        assert self.budgets(self.RULE, 30) == [7, 99, 7, 7]
        assert self.budgets(self.RULE, 60)[:2] == [100, 100]
        assert self.budgets(self.RULE, 100) == [100] * 4

    def test_alone_is_proportional(self):
        budgets = self.budgets(Measured((1.0, 3.0, 0.0, -1.0), (3, 2, 0, 1), by="alone", floor=4), 30)
        assert budgets[2:] == [4, 4]
        assert budgets[1] > 2 * budgets[0]

    def test_nothing_lost_means_uniform(self):
        plan = build_plan(
            Measured((0.0, -1.0), (0, 1), by="alone"), signal_values=None, base_budget=20, caps=[50, 50], floor=1
        )
        assert list(plan.budgets) == [20, 20]
        assert plan.warnings

    def test_round_trip(self, tmp_path):
        self.RULE.save(tmp_path / "losses.json")
        assert Measured.load(tmp_path / "losses.json") == self.RULE
        assert Measured.load(tmp_path / "losses.json", by="alone").by == "alone"
        assert name_or_plan(str(tmp_path / "losses.json")) == self.RULE

    @pytest.mark.parametrize(
        "given",
        [
            {"alone": (), "order": ()},
            {"alone": (1.0, 2.0), "order": (0, 0)},
            {"alone": (1.0, 2.0), "order": (1,)},
            {"alone": (1.0, float("nan")), "order": (0, 1)},
            {"alone": (1.0,), "order": (0,), "by": "magic"},
            {"alone": (1.0,), "order": (0,), "floor": 0},
        ],
    )
    def test_losses_that_do_not_fit_together(self, given):
        with pytest.raises(ConfigError):
            Measured(**given)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "squeezeattention-layer-losses", "version": 1}'])
    def test_damaged_files(self, tmp_path, text):
        (tmp_path / "losses.json").write_text(text)
        with pytest.raises(PlanError):
            Measured.load(tmp_path / "losses.json")
        with pytest.raises(PlanError):
            Measured.load(tmp_path / "absent.json")

    def test_another_model_is_refused(self, model):
        cache = SqueezeCache(model, budget=20, allocator=Measured((1.0, 2.0), (0, 1)))
        with torch.no_grad(), pytest.raises(PlanError, match="this model has 4"):
            model.generate(torch.tensor([ids(30, 9)]), past_key_values=cache, max_new_tokens=2)


def test_a_plan_can_be_scaled_to_another_budget():
    plan = BudgetPlan.from_budgets([10, 30, 20, 20])
    scaled = build_plan(Scaled(plan), signal_values=None, base_budget=40, caps=[200] * 4)
    assert list(scaled.budgets) == [20, 60, 40, 40]
    with pytest.raises(PlanError):
        build_plan(Scaled(plan), signal_values=None, base_budget=40, caps=[200] * 3)


class TestCommand:
    ARGS = ("oracle", "embedded", "--length", "256", "--samples", "1", "--alone", "--signal", "cosine", "--keep", "24")

    def test_table_and_files(self, tmp_path):
        result = CliRunner().invoke(
            app, [*self.ARGS, "-o", str(tmp_path / "losses.json"), "--plot", str(tmp_path / "losses.png")]
        )
        assert result.exit_code == 0, (result.stderr, result.exception)
        assert "cosine" in result.stdout
        rule = Measured.load(tmp_path / "losses.json")
        assert rule.setting["keep"] == 24
        assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
        plan = CliRunner().invoke(
            app,
            ["generate", "embedded", "-p", "x = 1\n" * 40, "--max-new-tokens", "2", "--json",
             "--allocator", str(tmp_path / "losses.json"), "--policy", "streaming_llm"],
        )  # fmt: skip
        assert plan.exit_code == 0, (plan.stderr, plan.exception)

    def test_json(self):
        result = CliRunner().invoke(app, [*self.ARGS, "--json"])
        assert result.exit_code == 0, (result.stderr, result.exception)
        found = json.loads(result.stdout)
        assert "low values" in found["signal_direction"]
        assert sorted(found["order"]) == list(range(len(found["alone"])))
        assert [one["signal"] for one in found["signals"]] == ["cosine"]

    @pytest.mark.parametrize(
        "wrong", [("--keep", "1"), ("--task", "absent"), ("--signal", "absent"), ("--policy", "absent"), ("-b", "abc")]
    )
    def test_mistakes(self, wrong):
        result = CliRunner().invoke(app, ["oracle", "embedded", *wrong])
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")


class TestFilesInAnEvaluation:
    def settings(self, tmp_path, *allocators):
        return Settings(
            "embedded", ("recall",), (200,), samples=1, policies=("streaming_llm",), budgets=("0.3",),
            allocators=tuple(f"{tmp_path}/{allocator}" for allocator in allocators),
        )  # fmt: skip

    @pytest.fixture
    def files(self, tmp_path):
        model, tokenizer = load_embedded()
        n_layers = model.config.num_hidden_layers
        Measured(tuple(map(float, range(n_layers))), tuple(range(n_layers))).save(tmp_path / "losses.json")
        BudgetPlan.from_budgets([10 * (1 + layer) for layer in range(n_layers)]).save(tmp_path / "plan.json")
        return model, tokenizer, tmp_path

    def test_plans_are_scaled_and_losses_followed(self, files, tmp_path):
        model, tokenizer, _ = files
        settings = self.settings(tmp_path, "losses.json", "losses.json:by=alone", "plan.json")
        run(model, tokenizer, settings, tmp_path / "out")
        plans = {row["config"]["allocator"]: row["plans"] for row in read_rows(tmp_path / "out")}
        budgets = {str(name).rpartition("/")[2]: made[0]["budgets"] for name, made in plans.items() if name}
        assert set(budgets) == {"losses.json", "losses.json:by=alone", "plan.json"}
        assert len({sum(one) for one in budgets.values()}) == 1
        assert budgets["losses.json"][-1] == max(budgets["losses.json"])
        shares = [share / budgets["plan.json"][0] for share in budgets["plan.json"]]
        assert shares == pytest.approx([1 + layer for layer in range(len(shares))], rel=0.15)

    def test_a_file_that_changed_is_another_run(self, files, tmp_path):
        model, tokenizer, _ = files
        settings = self.settings(tmp_path, "plan.json")
        run(model, tokenizer, settings, tmp_path / "out")
        BudgetPlan.from_budgets([20] * model.config.num_hidden_layers).save(tmp_path / "plan.json")
        with pytest.raises(EvaluationError):
            run(model, tokenizer, settings, tmp_path / "out")

    @pytest.mark.parametrize("allocator", ["plan.json:by=alone", "losses.json:by=magic", "losses.json:p=1", "no.json"])
    def test_mistakes(self, files, tmp_path, allocator):
        with pytest.raises((ConfigError, PlanError)):
            self.settings(tmp_path, allocator)
