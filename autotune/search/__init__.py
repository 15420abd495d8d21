"""Space, constraints, exact ranking and the Optuna study. Entry point: `decide.decide`."""
