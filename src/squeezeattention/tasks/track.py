"""A long decode in which each line copies from one that was written before: variables' values."""

from __future__ import annotations

import random

from .base import Question
from .generated import Draft, GeneratedTask, at_least
from .names import draw_nouns

_ASK = """\
Write the value of the variable after each assignment. For the assignments
1. a = 35
2. b = a
this would be
1. a 35
2. b 35
Values of the assignments above:
"""


class Track(GeneratedTask):
    """Assignments between variables; the model writes the value of the assigned variable after each of them.

    The ledger without arithmetic: ``3. amber = falcon`` needs the last value written for falcon, any distance back.
    One assignment in four is a new number, as is each variable's first: otherwise all variables would soon hold the
    same one. Those lines can be right without any memory of what was written; ``details["numbers"]`` counts them.
    """

    name = "track"
    metric = "lines_in_order"
    summary = "long decode: values of variables assigned to one another"

    def __init__(self, held_out: bool = True, variables: int = 6) -> None:
        super().__init__(held_out)
        at_least(2, variables=variables)
        self.variables = variables

    def least(self, length: int) -> int:
        return self.variables + 1

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        names = draw_nouns(rng, self.variables, held_out=self.held_out)
        values: dict[str, int] = {}
        assignments, lines, numbers = [], [], 0
        for number in range(1, units + 1):
            name = names[number - 1] if number <= len(names) else rng.choice(names)
            # Only from a variable that holds something else: the line changes something.
            others = [other for other in values if values[other] != values.get(name)]
            if number <= len(names) or not others or rng.random() < 0.25:
                values[name] = rng.randint(10, 99)
                source = str(values[name])
                numbers += 1
            else:
                source = rng.choice(others)
                values[name] = values[source]
            assignments.append(f"{number}. {name} = {source}\n")
            lines.append(f"{number}. {name} {values[name]}")
        context = f"These assignments are made in order.\n{''.join(assignments)}"
        question = Question(_ASK, tuple(lines), 0, "\n".join(lines) + "\n")
        return Draft(context, (question,), details={"assignments": units, "numbers": numbers, "variables": names})
