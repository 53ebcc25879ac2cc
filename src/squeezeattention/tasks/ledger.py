"""A long decode in which each line needs one that was written before: account balances."""

from __future__ import annotations

import random

from .base import Question
from .generated import Draft, GeneratedTask, at_least
from .names import draw_nouns

_ASK = """\
Write the balance of the account after each operation, then the last balance of every account. For the operations
1. a +5
2. b +7
3. a -2
this would be
1. a 5
2. b 7
3. a 3
last a 3
last b 7
Balances of the operations above:
"""


class Ledger(GeneratedTask):
    """Operations on accounts; the model writes the balance after each of them, then every account's last balance.

    A balance follows from the account's previous one, which stands only in what the model itself wrote: a cache that
    evicts while it decodes must keep it. Balances stay between 0 and 99.
    """

    name = "ledger"
    metric = "lines_in_order"
    summary = "long decode: running balances of accounts, then the last ones"

    def __init__(self, held_out: bool = True, accounts: int = 4) -> None:
        super().__init__(held_out)
        at_least(1, accounts=accounts)
        self.accounts = accounts

    def least(self, length: int) -> int:
        return self.accounts

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        balances = dict.fromkeys(draw_nouns(rng, self.accounts, held_out=self.held_out), 0)
        names = list(balances)
        operations, lines = [], []
        for number in range(1, units + 1):
            # Each account is used once at the start, so that all have a last balance to write.
            name = names[number - 1] if number <= len(names) else rng.choice(names)
            change = _change(rng, balances[name])
            balances[name] += change
            operations.append(f"{number}. {name} {change:+d}\n")
            lines.append(f"{number}. {name} {balances[name]}")
        lines += [f"last {name} {balance}" for name, balance in balances.items()]
        context = f"All accounts start at 0. These are the operations on them.\n{''.join(operations)}"
        question = Question(_ASK, tuple(lines), 0, "\n".join(lines) + "\n")
        return Draft(context, (question,), details={"operations": units, "accounts": names})


def _change(rng: random.Random, balance: int) -> int:
    """A random payment of 1 to 20 that keeps the balance within 0 and 99."""
    amount = rng.randint(1, 20)
    return -amount if balance + amount > 99 or (balance >= amount and rng.random() < 0.5) else amount
