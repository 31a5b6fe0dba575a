# Runs on CPUs.
#   docker build -f docker/cpu.Dockerfile -t ard_jax:cpu .
#   docker run --rm -it -v $PWD:/work ard_jax:cpu --config=ciard_digits
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY ard_jax ard_jax
COPY configs configs
RUN pip install --no-cache-dir "." && rm -r /src

# Runs are written to /work by whoever runs the container (--user); compiled programs and decoded images to /cache.
RUN mkdir -m 777 /work /cache
ENV ARD_CACHE_DIR=/cache HOME=/tmp
WORKDIR /work
ENTRYPOINT ["ard-jax"]
CMD ["--help"]
