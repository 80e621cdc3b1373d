"""Token layout, budgets, schedules, scores, selection and traces: plain functions and values that need only PyTorch."""
