"""T2S-DA on top of self-training: features of each class pulled to the source, in the target's style."""
