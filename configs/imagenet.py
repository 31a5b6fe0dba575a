"""One method on ImageNet at 224 pixels, eps 4/255: ResNet-50 and ConvNeXt teachers, by one recipe for all.

    python -m ard_jax.main --config=configs/imagenet.py:rslad --config.data.dir=IMAGENET

IMAGENET has train/ and val/ with a folder for each class; val/ is the test split, and 10,000 training images
are held out to select on. Of the papers here only Singh et al. (2023, NeurIPS, arXiv 2303.01870) train at
this size: from them are AdamW with its rate, decay, warm-up and cosine, the moving average, and the attack
of `sat`, APGD of two steps, which has their Mixup, CutMix and label smoothing too; random erasing and colour
jitter nothing has. Other methods keep their loss with three steps of 2/3 eps (Salman et al. 2020), and the
distillation methods their numbers of CIFAR-10 or Tiny-ImageNet, which nobody has tuned here. Teachers lie in
imported/imagenet_robust and imported/imagenet_clean:

    python -m ard_jax.main --mode=import --file=FILE --out=imported/imagenet_robust

Variants: `:NAME:STUDENT` with resnet18, mobilenet_v3_large, mobilenet_v3_small, efficientnet_b0,
shufflenet_v2, convnext_tiny, vit_tiny or vit_small (the last three with the convolutional stem), and those of
the method. `--config.start_from=FOLDER` begins with a clean network, as Singh et al. do;
`--config.data.test_files=LIST` evaluates on the images of a list, such as RobustBench's 5,000.

What `--mode=plan` says (peak numbers of the makers, 35 % of them assumed; memory of the step as compiled
for a CPU): hours and GB of a device on v5e-64 rslad 6.8 and 3.5, dard 10.8 and 3.5, ciard 15.1 and 10.6,
saad 16.1 and 9.5, adaad 25.0 and 8.7, adaad:igdm 29.7 and 8.4. On 8 H100 rslad 12.9 and 21, dard 20.7,
ciard 28.8, saad 31.0, adaad 48.4, adaad:igdm 57.6 hours; the last three need 77 to 85 GB there, so 16
devices or a smaller batch (`--config.run.remat=True` recomputes activations instead). Smaller students, hours
and GB: sat:vit_small 5.7 and 2.7 on v5e-64, 11 and 21 on 8 H100; sat:convnext_tiny 9.3 and 3.7, 17.9 and 28;
rslad:convnext_tiny 15.7 and 6.7, 30.4 and 47.

What TPU's own compiler makes of the step for v5e, without the device (`python -m benchmarks.compile_tpu`): of
16 images on a chip sat:vit_small 1,497 GFLOP, 352 MiB of state and batch, 1,408 MiB of work space;
sat:convnext_tiny 1,372 GFLOP, 441 and 1,252 MiB. Of 64 images sat:vit_small 5,988 GFLOP and 3,582 MiB, with
`run.remat` 7,673 GFLOP and 1,422 MiB.

None of these experiments has been run by this project.
"""

from . import protocol


def get_config(choice: str = ""):
    return protocol.experiment("imagenet", choice)
