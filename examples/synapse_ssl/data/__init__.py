"""Synapse (BTCV), ACDC, CHAOS and a procedural phantom behind one interface; budgets of labels, patches, batches."""
