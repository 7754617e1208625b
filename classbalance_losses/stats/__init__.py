"""Class counts, shares and weights of a folder of labels: ``python -m classbalance_losses.stats FOLDER``.

Reads .png (grey or palette, of up to 16 bits), .tif, .npy, .npz, .nii and .nii.gz files of class indices, and with
``--colors FILE`` .png and .tif files whose colours stand for classes. The class names, their number and the ignored
label come from a ``dataset.json`` beside or above the labels, or from the options. Masks of two labels, 0 and 255, are
asked about: ``--object 255`` counts 255 as class 1, ``--ignore-index 255`` leaves it out.

``--task binary`` and ``--task multilabel`` print ``pos_weight`` for ``torch.nn.BCEWithLogitsLoss`` instead of class
weights. ``--workers N`` reads N files at a time, ``--checkpoint FILE`` goes on after an interruption.
"""

from classbalance_losses.stats.command import main
from classbalance_losses.stats.files import LabelFiles

__all__ = ["LabelFiles", "main"]
