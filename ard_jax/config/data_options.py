"""What the schema has of data: which images, and how they are read, augmented and batched."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ard_jax.config.marks import CONTENT, EVALUATION, NOTHING, Folder
from ard_jax.data import MAX_SIDE
from ard_jax.io.options import AtLeastOne, Count, NotNegative, Options, Seed, Share


def _no_mixing(value: Any) -> Any:
    if value in ("cutmix", "mixup"):
        raise ValueError(
            f"config.data.augment={value!r}: mixing is an option of its own, config.data.{value}=1, beside "
            "an augmentation such as crop_flip"
        )
    return value


class DataConfig(Options):
    """Dataset, split and augmentation."""

    name: str = Field(
        description="digits, cifar10, cifar100, tiny_imagenet, imagenet, folder, tfds or npz."
    )
    dir: str = Field(
        default="",
        description="Folder or file of the data; empty for datasets that come with a package.",
        json_schema_extra=CONTENT,
    )
    holdout: NotNegative = Field(
        default=0.0,
        description="Validation images taken from the training set: a share (< 1) or a number; 0 for none.",
    )
    split_seed: Seed = Field(
        default=0,
        description="Which images are held out; not the run's seed: no teacher may train on them either.",
    )
    augment: Annotated[
        Literal[
            "none",
            "crop_flip",
            "crop",
            "resized_crop",
            "cropshift",
            "idbh_weak",
            "idbh_strong",
            "autoaugment",
        ],
        BeforeValidator(_no_mixing),
    ] = Field(
        default="crop_flip",
        description="Random augmentation of the student's training images, see `augment.augment`. Teachers "
        "that a run trains have the plain crop under the last four. `resized_crop` is ImageNet's: a random "
        "part of each image, scaled and mirrored while it is read (loader=`grain`, with `image_size`).",
    )
    flip: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether the last four kinds of `augment` mirror images too, as `crop_flip` always does "
        "and `crop` never; `auto`: not the digits, which have no mirror images.",
    )
    crop_area: tuple[Share, Share] = Field(
        default=(0.08, 1.0),
        description="Of `resized_crop`: least and largest part of an image's area.",
    )
    crop_sizes: tuple[Annotated[int, Field(ge=8, le=MAX_SIDE)], ...] = Field(
        default=(),
        description="Of `resized_crop`: sides in pixels of the training images, one after the other, such as "
        "128, 224, 288; empty for `image_size`, at which the evaluation is in any case.",
    )
    crop_boundaries: tuple[AtLeastOne, ...] = Field(
        default=(), description="First epochs of the second of `crop_sizes` and of those after it."
    )
    mixup: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="Alpha of Mixup, w x_i + (1 - w) x_j of two images and their labels with w ~ Beta(alpha, "
        "alpha): see `mixing.mix`. Of the student's images alone; 0 for none.",
    )
    cutmix: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="Alpha of CutMix, a window of another image with an area ~ Beta(alpha, alpha). With "
        "`mixup` too each image gets either with probability 1/2; 0 for none.",
    )
    mix_probability: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Of `mixup` and `cutmix`: share of the images that are mixed."
    )
    pad: Count = Field(default=4, description="Zero padding of the random crop, pixels.")
    extra: Folder = Field(
        default="",
        description="Uncompressed .npz file of further training images for the student, such as generated "
        "ones, that may be larger than memory: see `data.extra`. Empty for none.",
        json_schema_extra=CONTENT,
    )
    extra_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.7, description="Share of a batch that is taken from `extra`, rounded down."
    )
    last_batch: Literal["drop", "keep"] = Field(
        default="keep",
        description="Drop the epoch's last, smaller batch, or keep it (compiles the step twice).",
    )
    loader: Literal["memory", "grain"] = Field(
        default="memory",
        description="`memory` decodes all images at the start; `grain` reads them from disk as they are "
        "needed, for data that does not fit: see `data.Reading`. Both give the same batches.",
        json_schema_extra=NOTHING,
    )
    image_size: Annotated[int, Field(ge=0, le=MAX_SIDE)] = Field(
        default=0,
        description="Side in pixels that the images of `folder` and `tfds` are cropped and scaled to; 0: as "
        "they are.",
        json_schema_extra=CONTENT,
    )
    resize: Annotated[int, Field(ge=0, le=MAX_SIDE)] = Field(
        default=0,
        description="With `image_size`: the shorter side in pixels before the centre is cut out, 256 in "
        "ImageNet's usual evaluation at 224; 0: the largest centred square is scaled.",
        json_schema_extra=CONTENT,
    )
    classes: Folder = Field(
        default="",
        description="Text file of the class folders of `folder` and `imagenet` to read, one a line, in the "
        "order of the labels; `imagenet100` is a list that comes with the package; empty for all.",
        json_schema_extra=CONTENT,
    )
    test_files: Folder = Field(
        default="",
        description="Text file of the test images of `folder` and `imagenet`, one a line as CLASS/NAME; "
        "empty for all.",
        json_schema_extra=EVALUATION,
    )
    class_order: Literal["text", "natural"] = Field(
        default="text",
        description="Of the class names of `folder`, and so their labels: `text` sorts `10` before `2`, as "
        "torchvision does, `natural` after it.",
        json_schema_extra=CONTENT,
    )
    workers: Count = Field(
        default=0,
        description="Of `grain`: processes that decode; 0 for this one's threads.",
        json_schema_extra=NOTHING,
    )
    prefetch: AtLeastOne = Field(
        default=4,
        description="Of `grain`: batches decoded ahead, by each worker.",
        json_schema_extra=NOTHING,
    )
    on_device: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="The whole training split kept in the memory of each device, from where a step takes its "
        "batch; `auto`: on in a single process for at most 1 GiB of images in memory. The trained parameters "
        "are the same, bit for bit.",
        json_schema_extra=NOTHING,
    )

    @property
    def mixes(self) -> bool:
        """Whether images are of two, with labels in proportion."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def mirrors(self) -> bool:
        """Whether the stronger kinds of `augment` mirror images."""
        return self.name != "digits" if self.flip == "auto" else self.flip == "on"

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        found = []
        if self.holdout >= 1 and (self.holdout != int(self.holdout) or self.holdout == 1):
            found.append(
                f"holdout={self.holdout}: a share below 1, or a whole number of images from 2 on"
            )
        if self.name == "digits" and self.dir:
            found.append(
                f"dir={self.dir!r}: digits come with a package and are read from nowhere else; leave it out, "
                "or choose another config.data.name, such as folder or npz"
            )
        if self.mix_probability < 1 and not self.mixes:
            found.append(
                f"mix_probability={self.mix_probability} is of config.data.mixup and cutmix: give one of them"
            )
        if self.augment == "resized_crop":
            needs = {"loader": "grain", "image_size": self.image_size or 224, "extra": ""}
            found += [
                f"augment='resized_crop' crops images of several sizes while they are read: it needs "
                f"config.data.{name}={value!r}"
                for name, value in needs.items()
                if getattr(self, name) != value
            ]
        found += self._size_conflicts()
        if not 0 < self.crop_area[0] <= self.crop_area[1]:
            found.append(
                f"crop_area={self.crop_area}: parts of the area, above 0 and increasing, such as (0.08, 1.0)"
            )
        if self.on_device == "on" and self.loader == "grain":
            found.append(
                "on_device='on' with config.data.loader='grain': what is kept on device has to be in memory "
                "first; use config.data.loader=memory, or config.data.on_device=off"
            )
        if self.on_device == "on" and self.extra:
            found.append(
                f"on_device='on' with config.data.extra={self.extra!r}, which is read from disk as needed: "
                "use config.data.on_device=auto"
            )
        return found

    def _size_conflicts(self) -> list[str]:
        sizes, starts = self.crop_sizes, self.crop_boundaries
        if sizes and self.augment != "resized_crop":
            return [f"crop_sizes={sizes}: is of config.data.augment='resized_crop'; leave it out"]
        if len(starts) != max(len(sizes) - 1, 0):
            return [
                f"crop_boundaries={starts}: crop_sizes={sizes} needs {max(len(sizes) - 1, 0)}, the first "
                "epoch of each size but the first"
            ]
        if list(starts) != sorted(set(starts)) or starts[:1] == (1,):
            return [f"crop_boundaries={starts}: epochs must increase, from 2 on"]
        return []
