"""GTA5, SYNTHIA, Cityscapes, and streets → CamVid behind one interface; label splits, sampling, crops."""
