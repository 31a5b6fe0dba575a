"""IAD-I (Zhu et al. 2022) on CIFAR-10.

    python -m ard_jax.main --config=configs/iad1_cifar10.py --config.data.dir=TFDS_FOLDER

ARD with a teacher that is trusted as far as it is right at x'. ZFancy/IAD: 200 epochs, rate 0.1, times 0.1
after 100 and 150, weight decay 2e-4, reliability from epoch 61. The paper's teacher has the student's size.
`:released`: one learning-rate decay, no reliability factor on the teacher's term, the unused passes.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("iad1", variant)
