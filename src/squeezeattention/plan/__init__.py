"""Budgets: what was asked for, how it is divided among the layers, and the record of it."""

from .budget import Budget
from .build import build_plan
from .fit import fit_budgets
from .kmeans import kmeans_1d
from .plan import BudgetPlan

__all__ = ["Budget", "BudgetPlan", "build_plan", "fit_budgets", "kmeans_1d"]
