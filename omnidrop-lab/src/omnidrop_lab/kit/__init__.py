"""Shared by `needle`, `bench`, `evals`, `compare`: statistics, per-row answers, stage times, plots, code checksum."""
