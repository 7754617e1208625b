"""The losses in the words of the frameworks that people train with.

Nothing is imported here: ``classbalance_losses.adapters.mmengine``, ``.monai``, ``.nnunet``, ``.huggingface`` and
``.lightning`` are imported by name, and only then is a framework needed.
"""
