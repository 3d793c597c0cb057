"""Token models: ids in, logits out, one step at a time, with a state that the caller holds."""
