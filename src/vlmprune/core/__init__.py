"""What every method shares: budgets, selectors, signals, the method contract, recipes, the registry."""
