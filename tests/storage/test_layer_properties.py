"""A layer against a model of it in Python sets: random stories of prompts, steps and turns, with budgets that are one
for all, or one for each row and KV head.

Keys and values carry their row, head and position, so that a token that is not where it should be is seen at once.
"""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention.cache.layer import SqueezeLayer
from squeezeattention.cache.step import ACTIVE, Step
from squeezeattention.policies import resolve_policy

HEADS = 3


class Model:
    """What a layer must hold: per row and head a set of positions, and the attention each received."""

    def __init__(self, policy: str, sinks: int, window: int | None, rows: int) -> None:
        self.policy, self.sinks, self.window = policy, sinks, window
        self.kept = [[set() for _ in range(HEADS)] for _ in range(rows)]
        self.mass = [[{} for _ in range(HEADS)] for _ in range(rows)]
        self.next = [0] * rows

    def choose(self, row: int, head: int, budget: int, newest: int) -> None:
        held = self.kept[row][head]
        if self.window is not None:
            budget = min(budget, self.window)
        if len(held) <= budget:
            return
        if self.window is not None:
            held = {p for p in held if p > newest - self.window}
        if self.policy == "h2o":
            recent = math.ceil(budget / 2)
            mass = self.mass[row][head]
            old = sorted((p for p in held if p <= newest - recent), key=lambda p: (-mass[p], -p))
            first = set(old[: budget - recent])
            held = {p for p in held if p > newest - recent}
        else:
            first = {p for p in held if p < (self.sinks if self.policy == "streaming_llm" else 0)}
            held = held - first
        self.kept[row][head] = first | set(sorted(held, reverse=True)[: budget - len(first)])


class Story:
    """Drives a real layer and its model side by side."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.policy = rng.choice(["sliding_window", "streaming_llm", "h2o"])
        sinks = rng.choice([0, 1, 4]) if self.policy == "streaming_llm" else 0
        options = {"sinks": sinks} if self.policy == "streaming_llm" else {}
        self.minimum = max(2, sinks + 1)
        self.window = rng.choice([None, None, rng.randint(3, 20)])
        self.rows = rng.randint(1, 3)
        self.layer = SqueezeLayer(0, self.window, resolve_policy(self.policy, **options))
        self.cache = SimpleNamespace(
            layers=[self.layer], _note_bytes=lambda layer: None, _trim_before=lambda index, step: None
        )
        self.model = Model(self.policy, sinks, self.window, self.rows)
        self.next, self.padded, self.steps = [0], False, 0
        self.generator = torch.Generator().manual_seed(rng.randrange(2**31))

    def tokens(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [B, H, q, 3] = (row, head, position); values are their negatives."""
        length = positions.shape[1]
        shape = (self.rows, HEADS, length)
        row = torch.arange(self.rows)[:, None, None].expand(shape)
        head = torch.arange(HEADS)[None, :, None].expand(shape)
        keys = torch.stack([row, head, positions[:, None].expand(shape)], dim=-1).float()
        return keys, -keys

    def forward(self, length: int, padding: list[int] | None, decoding: bool) -> None:
        real = None
        if padding and any(padding):
            real = torch.arange(length) >= torch.tensor(padding)[:, None]
            self.padded = True
        step = Step(self.cache, length, self.next, real, decoding, observe=False)
        keys, values = self.tokens(step.positions(torch.device("cpu")))
        ACTIVE.step = step
        try:
            self.layer.update(keys, values)
        finally:
            ACTIVE.step = None
        before = self.next * self.rows if len(self.next) == 1 else self.next
        counts = [length - (padding[r] if padding else 0) for r in range(self.rows)]
        for row in range(self.rows):
            for position in range(before[row], before[row] + counts[row]):
                for head in range(HEADS):
                    self.model.kept[row][head].add(position)
                    self.model.mass[row][head][position] = 0.0
                    if decoding:
                        self.model.choose(row, head, self.budgets[row][head], position)
        if real is None:
            self.next = [after + length for after in self.next]
        else:
            self.next = [after + count for after, count in zip(before, counts, strict=True)]
        if self.policy == "h2o":
            self.score()
        self.steps += length

    def score(self) -> None:
        """Random attention for every token held."""
        store = self.layer.store
        mass = torch.rand(self.rows, HEADS, store.used, generator=self.generator)
        positions = store.used_positions().expand(self.rows, HEADS, -1)
        store.add_scores(mass.masked_fill(positions < 0, 0.0))
        sums = store.used_scores().tolist()
        for row in range(self.rows):
            for head in range(HEADS):
                for column, position in enumerate(positions[row, head].tolist()):
                    if position >= 0:
                        self.model.mass[row][head][position] = sums[row][head][column]

    def draw_budget(self) -> int | list[list[int]]:
        if self.rng.random() < 0.4:
            return self.rng.randint(self.minimum, 30)
        draw = self.rng.choice([lambda: self.rng.randint(self.minimum, 30), lambda: self.rng.choice([6, 11, 30])])
        return [[draw() for _ in range(HEADS)] for _ in range(self.rows)]

    def compact(self, budget: int | list[list[int]]) -> None:
        self.layer.compact(budget, [after - 1 for after in self.next], self.padded)
        self.budgets = [[budget] * HEADS] * self.rows if isinstance(budget, int) else budget
        after = self.next * self.rows if len(self.next) == 1 else self.next
        for row in range(self.rows):
            for head in range(HEADS):
                newest, held = after[row] - 1, self.model.kept[row][head]
                if self.window is not None:  # what no query can see any more goes with the cut
                    self.model.kept[row][head] = {p for p in held if p > newest - self.window}
                self.model.choose(row, head, self.budgets[row][head], newest)

    def check(self) -> None:
        store = self.layer.store
        keys, values = store.view()
        positions = store.used_positions().expand(self.rows, HEADS, -1)
        held = positions >= 0
        want_keys, _ = self.tokens(torch.zeros(1, store.used, dtype=torch.int64))
        want_keys[..., 2] = positions
        assert torch.equal(keys[held], want_keys[held])
        assert torch.equal(values[held], -want_keys[held])
        for row in range(self.rows):
            for head in range(HEADS):
                found = [p for p in positions[row, head].tolist() if p >= 0]
                assert len(found) == len(set(found)), "a position is held twice"
                assert self.visible(found, row) == self.visible(self.model.kept[row][head], row)
        assert store.used <= store.capacity
        if not self.reading:
            room = [[min(tokens, self.window or tokens) for tokens in row] for row in self.budgets]
            for row, counts in enumerate(self.layer.heads_held()):
                assert all(map(int.__le__, counts, room[row]))
            if self.layer.is_ragged:
                assert store.kv_bytes() == sum(map(sum, room)) * 2 * 3 * 4
            else:
                assert store.capacity <= max(self.layer.budget, store.used)

    def visible(self, positions: list[int] | set[int], row: int) -> set[int]:
        """What the newest query can see; when a token that nobody sees goes is the layer's own affair."""
        newest = (self.next[0] if len(self.next) == 1 else self.next[row]) - 1
        return {p for p in positions if self.window is None or p > newest - self.window}

    def run(self) -> int:
        for turn in range(self.rng.randint(1, 3)):
            self.reading = True
            for chunk in range(self.rng.randint(1, 3)):
                length = self.rng.randint(1, 24)
                padding = None
                if self.rows > 1 and self.rng.random() < 0.5:
                    padding = [self.rng.randint(0, length if chunk or turn else length - 1) for _ in range(self.rows)]
                    if all(padding):
                        padding[0] = 0
                self.forward(length, padding, decoding=False)
                self.check()
            self.compact(self.draw_budget())
            self.reading = False
            self.check()
            for _ in range(self.rng.randint(0, 60)):
                self.forward(1, None, decoding=True)
                self.check()
            if self.rng.random() < 0.2:
                self.reorder()
        return self.steps

    def reorder(self) -> None:
        """Beam search: rows are permuted; keys must follow (their row tag is rewritten to match)."""
        order = [self.rng.randrange(self.rows) for _ in range(self.rows)]
        self.layer.select_rows(torch.tensor(order))
        store, own = self.layer.store, torch.arange(self.rows)[:, None, None]
        if self.layer.is_ragged:
            own = store.units.of_slot[0] // HEADS
        store.keys[..., 0] = own.float()
        store.values[..., 0] = -own.float()
        self.budgets = [self.budgets[row] for row in order]
        self.model.kept = [[set(head) for head in self.model.kept[row]] for row in order]
        self.model.mass = [[dict(head) for head in self.model.mass[row]] for row in order]
        if len(self.next) > 1:
            self.next = [self.next[row] for row in order]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_random_stories(seed):
    Story(random.Random(seed)).run()


@pytest.mark.parametrize("worker", range(4))
def test_many_steps(worker):
    """100,000 steps of a layer in all."""
    rng = random.Random(worker)
    steps = 0
    while steps < 25_000:
        steps += Story(rng).run()
