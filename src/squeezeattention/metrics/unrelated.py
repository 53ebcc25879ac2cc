"""What unrelated texts score by measures of overlap, in which nobody expects full marks."""

from __future__ import annotations

from collections.abc import Mapping

#: Mean score of one article's reference summary against another's: XSum and CNN/DailyMail, 200 of each, alike to 0.012.
UNRELATED: Mapping[str, float] = {"rouge1": 0.09, "rouge2": 0.003, "rougeL": 0.07, "rougeL_longbench": 0.07}
