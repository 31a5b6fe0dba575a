"""ARD (Goldblum et al. 2020) on CIFAR-10.

    python -m ard_jax.main --config=configs/ard_cifar10.py --config.data.dir=TFDS_FOLDER

The robust teacher's softened labels at x supervise the student at x'. Source:
goldblum/AdversariallyRobustDistillation, 200 epochs, rate 0.1, times 0.1 after 100 and 150, weight decay
2e-4. The student is attacked in train mode and keeps those statistics. `:released`: one learning-rate decay,
since the code's second one changes nothing.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("ard", variant)
