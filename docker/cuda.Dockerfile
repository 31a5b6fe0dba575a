# Runs on NVIDIA GPUs: CUDA comes with JAX's wheels, the host has to have a driver for CUDA 13 and the container toolkit.
#   docker build -f docker/cuda.Dockerfile -t ard_jax:cuda .
#   docker run --rm -it --gpus all -v $PWD:/work ard_jax:cuda --config=ciard_digits
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY ard_jax ard_jax
COPY configs configs
RUN pip install --no-cache-dir ".[cuda]" && rm -r /src

# Runs are written to /work by whoever runs the container (--user); compiled programs and decoded images to /cache.
RUN mkdir -m 777 /work /cache
ENV ARD_CACHE_DIR=/cache HOME=/tmp
WORKDIR /work
ENTRYPOINT ["ard-jax"]
CMD ["--help"]
