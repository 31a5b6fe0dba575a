"""One method on a hundred classes of ImageNet, those of Tian et al. (2020): see configs/imagenet.py.

    python -m ard_jax.main --config=configs/imagenet100.py:rslad --config.data.dir=IMAGENET

The list is ard_jax/data/sources/imagenet100.txt; another is --config.data.classes=FILE, with the names of
class folders. Other papers have other lists: say which with a number. Teachers of these classes lie in
imported/imagenet100_robust and imported/imagenet100_clean; 2,000 training images are held out. None of these
experiments has been run by this project.
"""

from . import protocol


def get_config(choice: str = ""):
    return protocol.experiment("imagenet100", choice)
