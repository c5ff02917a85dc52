"""Reports: one HTML page of trainings, evaluations and comparisons, with all that it shows inside it."""
