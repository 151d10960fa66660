"""Data only: the demo checkpoint that `remuda serve` runs when no model is named."""
