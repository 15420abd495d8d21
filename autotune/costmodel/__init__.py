"""From measured points to the time of any step, with the error on what was not seen. Entry point: `model.CostModel`."""
