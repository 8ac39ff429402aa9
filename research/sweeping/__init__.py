"""What ``sweep`` is made of: options to try, Optuna's journal, trials, and their report."""
