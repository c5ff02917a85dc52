"""Several trainings under one recipe, and what their difference shows."""
