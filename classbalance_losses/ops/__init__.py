"""The stages: small pure functions on tensors, from which every loss is put together."""
