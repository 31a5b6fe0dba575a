"""One method on ImageNet at 224 pixels, eps 4/255: ResNet-50 and ConvNeXt teachers, by one recipe for all.

    python -m ard_jax.main --config=configs/imagenet.py:rslad --config.data.dir=IMAGENET

IMAGENET has train/ and val/ with a folder for each class; val/ is the test split, and 10,000 training images
are held out to select on. Of the papers here only Singh et al. (2023, NeurIPS, arXiv 2303.01870) train at
this size: from them are AdamW with its rate, decay, warm-up and cosine, the moving average, and the attack
of `sat`, APGD of two steps. Other methods keep their loss with three steps of 2/3 eps (Salman et al. 2020),
and the distillation methods their numbers of CIFAR-10 or Tiny-ImageNet, which nobody has tuned here. There is
no mixup, CutMix, random erasing or colour jitter, which Singh et al. have. Teachers lie in
imported/imagenet_robust and imported/imagenet_clean:

    python -m ard_jax.main --mode=import --file=FILE --out=imported/imagenet_robust

Variants: `:NAME:STUDENT` with resnet18, mobilenet_v3_large, mobilenet_v3_small, efficientnet_b0,
shufflenet_v2, convnext_tiny, vit_tiny or vit_small (the last three with the convolutional stem), and those of
the method. `--config.start_from=FOLDER` begins with a clean network, as Singh et al. do;
`--config.data.test_files=LIST` evaluates on the images of a list, such as RobustBench's 5,000.
COSTS
None of these experiments has been run by this project.
"""

from . import protocol


def get_config(choice: str = ""):
    return protocol.experiment("imagenet", choice)
