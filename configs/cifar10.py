"""One method on CIFAR-10: ResNet-18, its paper's schedule, robust teacher WRN-34-10, clean teacher ResNet-56.

    python -m ard_jax.main --config=configs/cifar10.py:rslad --config.data.dir=TFDS_FOLDER

Every method of `ard_jax.methods`; its docstring there has the source. eps is 8/255 where a paper has 0.031.
`:METHOD:VARIANT`: `cpu` trains small networks for 5 epochs, `mobilenet_v2` is another student, `released`
(ard, iad1, iad2: one decay of the rate; absld, adaiad, adr_trades, dgad, dkl, iad1, mail, mail_trades,
mail_mart: see there) does what the released code does; `igdm` (adaad, adaiad, ard, iad1, rslad) adds IGDM's
gradient matching.
The full experiments have not been run by this project.
"""

from . import protocol


def get_config(choice: str = ""):
    return protocol.experiment("cifar10", choice)
